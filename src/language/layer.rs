//! One decoder layer.

use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::ops::{
    self, Activation, Attention, AttentionSegment, BlockTables, Epilogue, KeyValues, KvCache, Norm, PagedForm, Places,
    QkvRope, QueryKeyNorm, RopeRows, RopeTable, Scores, SharedRows,
};
use crate::tensor::{Matrix, Precision, Tensor};
use crate::weights::config::{ExpertsConfig, LanguageConfig, LayerConfig, QueryKeyNormKind};
use crate::weights::row_order::RowOrder;

/// A decoder layer, as [`LayerConfig`] describes it.
#[derive(Debug)]
pub(super) struct Layer {
    attention: Attention,
    /// Which of the model's RoPE tables it uses.
    rope: usize,
    parallel: bool,
    norm_1: Option<Norm>,
    /// Query, key and value projections, stacked as [`ops::linear_qkv_rope`] requires:
    /// [(heads + 2 kv_heads) head_dim, hidden].
    qkv: Matrix,
    qkv_bias: Option<Tensor>,
    query_key_norm: Option<QueryKeyNorm>,
    /// Queries have a factor that depends on their position.
    query_factor: bool,
    out: Output,
    norm_2: Option<Norm>,
    feed_forward: FeedForward,
}

/// A linear layer whose result is added to the residual stream.
#[derive(Debug)]
struct Output {
    weight: Matrix,
    bias: Option<Tensor>,
    /// The residual scale, `[hidden]`.
    gamma: Option<Tensor>,
    /// The norm of its result.
    norm: Option<Norm>,
}

/// down(activation(gate(x)) * up(x)), once or as a mixture of experts.
#[derive(Debug)]
enum FeedForward {
    Dense { up: Up, down: Box<Output> },
    Experts(Box<Experts>),
}

#[derive(Debug)]
struct Experts {
    router: Matrix,
    experts: Vec<(Up, Matrix)>,
    config: ExpertsConfig,
    /// The residual scale.
    scale: f32,
    shared: Option<Shared>,
}

/// The expert that serves every token.
#[derive(Debug)]
struct Shared {
    up: Up,
    down: Output,
    /// [1, hidden]: its result is multiplied by the sigmoid of this row times the token.
    gate: Option<Matrix>,
}

/// activation(gate(x)) * up(x), or activation(up(x)).
#[derive(Debug)]
struct Up {
    /// Rows of gate and up projections alternating: [2 inner, hidden]; without a gate [inner, hidden].
    weight: Matrix,
    bias: Option<Tensor>,
    activation: Activation,
    gated: bool,
}

impl Layer {
    pub(super) async fn load(loader: &Loader, config: &LanguageConfig, index: usize) -> Result<Self> {
        let LayerConfig { parallel, biases, .. } = config.layer;
        let other = config.other_layers.as_ref().filter(|_| config.is_other(index));
        let attention = Attention {
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            causal: true,
            exact: loader.precision() == Precision::F32,
            scores: Scores { window: other.and_then(|other| other.window), ..config.layer.scores },
        };
        attention.check()?;
        let part = loader.pp("self_attn");
        let fixed = config.head_dim - config.rope.rotated.min(config.head_dim);
        let orders = [
            ("q_proj", RowOrder::RopeInterleaved { heads: attention.heads, fixed }),
            ("k_proj", RowOrder::RopeInterleaved { heads: attention.kv_heads, fixed }),
            ("v_proj", RowOrder::Plain),
        ];
        let [norm_1, norm_2, post_1, post_2] = config.layer.norm_names().map(|name| (name, loader, config));
        let norm_1 = load_norm(norm_1).await?;
        let weights = orders.map(|(name, order)| (format!("{name}.weight"), order));
        let weights: Vec<_> = weights.iter().map(|(name, order)| (name.as_str(), *order)).collect();
        let qkv = part.stacked_in_order(&weights).await?;
        let qkv_bias = if biases.qkv {
            let mut bias = Vec::new();
            for (name, order) in orders {
                bias.extend(in_order(&part.values(&format!("{name}.bias")).await?, order));
            }
            Some(part.upload("qkv bias", &[bias.len()], &bias).await?)
        } else {
            None
        };
        let query_key_norm = match config.layer.query_key_norm {
            Some(kind) => Some(load_query_key_norm(&part, config, kind, &orders).await?),
            None => None,
        };
        Ok(Self {
            attention,
            rope: usize::from(other.is_some_and(|other| other.rope.is_some())),
            parallel,
            norm_1,
            qkv,
            qkv_bias,
            query_key_norm,
            query_factor: config.rope.query_factor.is_some(),
            out: Output::load(&part, "o_proj", biases.out, config, load_norm(post_1).await?).await?,
            norm_2: load_norm(norm_2).await?,
            feed_forward: FeedForward::load(loader, config, load_norm(post_2).await?).await?,
        })
    }

    /// x += Attn(norm1 x); x += FFN(norm2 x), in place. The first row of x is at `position`.
    pub(super) fn forward(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        tables: &[RopeTable],
        cache: &KvCache,
        position: usize,
    ) -> Result<()> {
        let rows = RopeRows::From { table: &tables[self.rope], first: position };
        self.around(recorder, x, QkvRope { layer: self.attention, rows, cache }, |recorder, queries| {
            let cached = KeyValues::Cached { cache, length: position + x.rows() };
            ops::attention(recorder, self.attention, queries, cached)
        })
    }

    /// As [`Self::forward`], for rows of several sequences. Their keys and values are stored from `row` on, and they
    /// attend to the segments of `passes`.
    pub(super) fn forward_batch(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        tables: &[RopeTable],
        cache: &KvCache,
        row: usize,
        passes: &[Vec<AttentionSegment>],
    ) -> Result<()> {
        let rows = RopeRows::From { table: &tables[self.rope], first: row };
        self.around(recorder, x, QkvRope { layer: self.attention, rows, cache }, |recorder, queries| {
            ops::attention_segments(recorder, self.attention, queries, cache, passes)
        })
    }

    /// As [`Self::forward`], for rows of several sequences in a paged cache, at `places` (one for each RoPE table).
    pub(super) fn forward_paged(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        cache: &KvCache,
        places: &[Places],
        tables: &BlockTables,
        form: PagedForm,
    ) -> Result<()> {
        let rows = RopeRows::Placed(places[self.rope].rows());
        self.around(recorder, x, QkvRope { layer: self.attention, rows, cache }, |recorder, queries| {
            ops::attention_paged(recorder, self.attention, queries, cache, tables, form)
        })
    }

    /// The layer around its attention.
    fn around(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        rope: QkvRope<'_>,
        attend: impl FnOnce(&mut Recorder, &Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        if let (true, Some(norm)) = (self.parallel, &self.norm_1) {
            let normed = ops::norm(recorder, x, norm)?;
            let queries = self.queries(recorder, &normed, None, rope)?;
            let attended = attend(recorder, &queries)?;
            self.out.add(recorder, &attended, x)?;
            return self.feed_forward.forward(recorder, &normed, None, x);
        }
        let queries = self.queries(recorder, x, self.norm_1.as_ref(), rope)?;
        let attended = attend(recorder, &queries)?;
        self.out.add(recorder, &attended, x)?;
        self.feed_forward.forward(recorder, x, self.norm_2.as_ref(), x)
    }

    /// Queries of norm(x), rotated; writes keys and values to the cache.
    fn queries(&self, recorder: &mut Recorder, x: &Tensor, norm: Option<&Norm>, rope: QkvRope<'_>) -> Result<Tensor> {
        if let (Some(norm), None, None, false) = (norm, &self.qkv_bias, &self.query_key_norm, self.query_factor) {
            return ops::linear_qkv_rope(recorder, x, norm, &self.qkv, rope);
        }
        let epilogue = Epilogue { bias: self.qkv_bias.as_ref(), ..Default::default() };
        let qkv = linear_after(recorder, x, norm, &self.qkv, epilogue)?;
        ops::rope_rows(recorder, &qkv, self.query_key_norm.as_ref(), rope)
    }
}

/// epilogue(W norm(x)), or without a norm.
fn linear_after(
    recorder: &mut Recorder,
    x: &Tensor,
    norm: Option<&Norm>,
    weight: &Matrix,
    epilogue: Epilogue<'_>,
) -> Result<Tensor> {
    match norm {
        Some(norm) => ops::linear_normed(recorder, x, norm, weight, epilogue),
        None => ops::linear(recorder, x, weight, epilogue),
    }
}

/// Values in the order of a matrix's rows on the device.
fn in_order(values: &[f32], order: RowOrder) -> impl Iterator<Item = f32> {
    (0..values.len()).map(move |position| values[order.row_at(position, values.len())])
}

async fn load_norm((name, loader, config): (Option<&str>, &Loader, &LanguageConfig)) -> Result<Option<Norm>> {
    match name {
        Some(name) => Ok(Some(super::load_norm(loader, name, config).await?)),
        None => Ok(None),
    }
}

async fn load_query_key_norm(
    part: &Loader,
    config: &LanguageConfig,
    kind: QueryKeyNormKind,
    orders: &[(&str, RowOrder)],
) -> Result<QueryKeyNorm> {
    let mut gain = Vec::new();
    for ((name, heads), (_, order)) in
        [("q_norm", config.num_heads), ("k_norm", config.num_kv_heads)].iter().zip(orders)
    {
        let mut values = part.values(&format!("{name}.weight")).await?;
        if kind == QueryKeyNormKind::Head {
            values = values.repeat(*heads);
        }
        gain.extend(in_order(&values, *order));
    }
    Ok(QueryKeyNorm {
        gain: part.upload("norms of queries and keys", &[gain.len()], &gain).await?,
        eps: config.rms_norm_eps,
        centred: kind == QueryKeyNormKind::EachHead,
        whole: kind == QueryKeyNormKind::Whole,
    })
}

impl Output {
    async fn load(
        loader: &Loader,
        name: &str,
        has_bias: bool,
        config: &LanguageConfig,
        norm: Option<Norm>,
    ) -> Result<Self> {
        let scale = config.layer.residual_scale;
        Ok(Self {
            weight: loader.matrix(&format!("{name}.weight")).await?,
            bias: if has_bias { Some(loader.tensor(&format!("{name}.bias")).await?) } else { None },
            gamma: if scale == 1.0 {
                None
            } else {
                let gamma = vec![scale; config.hidden_size];
                Some(loader.upload("residual scale", &[gamma.len()], &gamma).await?)
            },
            norm,
        })
    }

    fn epilogue(&self) -> Epilogue<'_> {
        Epilogue { bias: self.bias.as_ref(), gamma: self.gamma.as_ref(), ..Default::default() }
    }

    /// y += scale norm(W x + b)
    fn add(&self, recorder: &mut Recorder, x: &Tensor, y: &Tensor) -> Result<()> {
        match &self.norm {
            None => ops::linear_add(recorder, x, &self.weight, self.epilogue(), y, 0),
            Some(norm) => {
                let result = ops::linear(recorder, x, &self.weight, self.epilogue())?;
                ops::norm_add(recorder, &result, norm, y)
            }
        }
    }
}

impl FeedForward {
    /// `norm`: that of its result.
    async fn load(loader: &Loader, config: &LanguageConfig, norm: Option<Norm>) -> Result<Self> {
        let (biases, gate) = (config.layer.biases, config.layer.gate);
        let Some(mixture) = config.experts else {
            let part = loader.pp("mlp");
            let gate = gate.then_some("gate_proj");
            let up = Up::load(&part, gate, "up_proj", biases.up, config.activation).await?;
            let down = Output::load(&part, "down_proj", biases.down, config, norm).await?;
            return Ok(Self::Dense { up, down: Box::new(down) });
        };
        let part = loader.pp("block_sparse_moe");
        let mut experts = Vec::new();
        for expert in 0..mixture.count {
            let part = part.pp("experts").pp(expert);
            let up = Up::load(&part, Some("w1"), "w3", false, config.activation).await?;
            experts.push((up, part.matrix("w2.weight").await?));
        }
        let shared = match mixture.shared {
            None => None,
            Some(shared) => {
                let own = part.pp("shared");
                Some(Shared {
                    up: Up::load(&own, Some("gate_proj"), "up_proj", false, config.activation).await?,
                    down: Output::load(&own, "down_proj", false, config, None).await?,
                    gate: if shared.gated { Some(part.matrix("shared_gate.weight").await?) } else { None },
                })
            }
        };
        let router = part.matrix("gate.weight").await?;
        Ok(Self::Experts(Box::new(Experts {
            router,
            experts,
            config: mixture,
            scale: config.layer.residual_scale,
            shared,
        })))
    }

    /// y += FFN(norm x)
    fn forward(&self, recorder: &mut Recorder, x: &Tensor, norm: Option<&Norm>, y: &Tensor) -> Result<()> {
        match self {
            Self::Dense { up, down } => {
                let inner = linear_after(recorder, x, norm, &up.weight, up.epilogue())?;
                down.add(recorder, &inner, y)
            }
            Self::Experts(experts) => match norm {
                Some(norm) => {
                    let normed = ops::norm(recorder, x, norm)?;
                    experts.forward(recorder, &normed, y)
                }
                None => experts.forward(recorder, x, y),
            },
        }
    }
}

impl Experts {
    /// y += the experts of each row of x
    fn forward(&self, recorder: &mut Recorder, x: &Tensor, y: &Tensor) -> Result<()> {
        let ExpertsConfig { per_token, normalised, scale, .. } = self.config;
        let logits = ops::linear(recorder, x, &self.router, Epilogue::default())?;
        let shares = ops::Shares { normalised, scale: scale * self.scale };
        let routing = ops::route(recorder, &logits, per_token, shares)?;
        let gpu = recorder.gpu().clone();
        let outputs = Tensor::temporary(&gpu, &[routing.slots(), y.columns()], "expert outputs")?;
        let rows = SharedRows::new(x);
        for (number, (up, down)) in self.experts.iter().enumerate() {
            let inner = Tensor::temporary(&gpu, &[routing.slots(), down.columns()], "expert intermediate")?;
            ops::linear_routed(recorder, &rows, &up.weight, up.epilogue(), routing.routes(number, true), &inner)?;
            let (inner, routes) = (SharedRows::of_slots(&inner), routing.routes(number, false));
            ops::linear_routed(recorder, &inner, down, Epilogue::default(), routes, &outputs)?;
        }
        ops::combine(recorder, &routing, &outputs, y)?;
        let Some(Shared { up, down, gate }) = &self.shared else { return Ok(()) };
        let inner = ops::linear(recorder, x, &up.weight, up.epilogue())?;
        match gate {
            None => down.add(recorder, &inner, y),
            Some(gate) => {
                let result = ops::linear(recorder, &inner, &down.weight, down.epilogue())?;
                let gates = ops::linear(recorder, x, gate, Epilogue::default())?;
                ops::gated_add(recorder, &result, &gates, y)
            }
        }
    }
}

impl Up {
    async fn load(
        loader: &Loader,
        gate: Option<&str>,
        up: &str,
        has_bias: bool,
        activation: Activation,
    ) -> Result<Self> {
        let (up_weight, up_bias) = (format!("{up}.weight"), format!("{up}.bias"));
        let Some(gate) = gate else {
            return Ok(Self {
                weight: loader.matrix(&up_weight).await?,
                bias: if has_bias { Some(loader.tensor(&up_bias).await?) } else { None },
                activation,
                gated: false,
            });
        };
        let bias =
            if has_bias { Some(loader.interleaved_bias(&format!("{gate}.bias"), &up_bias).await?) } else { None };
        let weight = loader.interleaved(&format!("{gate}.weight"), &up_weight).await?;
        Ok(Self { weight, bias, activation, gated: true })
    }

    fn epilogue(&self) -> Epilogue<'_> {
        Epilogue {
            bias: self.bias.as_ref(),
            activation: Some(self.activation),
            gated: self.gated,
            ..Default::default()
        }
    }
}
