//! One decoder layer.

use crate::Result;
use crate::gpu::Recorder;
use crate::loader::Loader;
use crate::ops::{
    self, Activation, Attention, AttentionSegment, BlockTables, Epilogue, KeyValues, KvCache, Norm, PagedForm, Places,
    QkvRope, RopeRows, RopeTable, SharedRows,
};
use crate::tensor::{Matrix, Tensor};
use crate::weights::config::LanguageConfig;
use crate::weights::row_order::RowOrder;

/// A pre-norm decoder layer.
#[derive(Debug)]
pub(super) struct Layer {
    attention: Attention,
    norm_1: Norm,
    /// Query, key and value projections, stacked as [`ops::linear_qkv_rope`] requires:
    /// [(heads + 2 kv_heads) head_dim, hidden].
    qkv: Matrix,
    out: Matrix,
    norm_2: Norm,
    feed_forward: FeedForward,
}

/// down(activation(gate(x)) * up(x)), once or as a mixture of experts.
#[derive(Debug)]
enum FeedForward {
    Dense(Gated),
    Experts { router: Matrix, experts: Vec<Gated>, top_k: usize },
}

#[derive(Debug)]
struct Gated {
    /// Rows of gate and up projections alternating: [2 inner, hidden].
    gate_up: Matrix,
    activation: Activation,
    /// [hidden, inner]
    down: Matrix,
}

impl Layer {
    pub(super) async fn load(loader: &Loader, config: &LanguageConfig, attention: Attention) -> Result<Self> {
        let (eps, unit_offset) = (config.rms_norm_eps, config.norm_unit_offset);
        let heads = loader.pp("self_attn");
        let qkv = [
            ("q_proj.weight", RowOrder::RopeInterleaved { heads: attention.heads }),
            ("k_proj.weight", RowOrder::RopeInterleaved { heads: attention.kv_heads }),
            ("v_proj.weight", RowOrder::Plain),
        ];
        Ok(Self {
            attention,
            norm_1: loader.rms_norm("input_layernorm", eps, unit_offset).await?,
            qkv: heads.stacked_in_order(&qkv).await?,
            out: heads.matrix("o_proj.weight").await?,
            norm_2: loader.rms_norm("post_attention_layernorm", eps, unit_offset).await?,
            feed_forward: FeedForward::load(loader, config).await?,
        })
    }

    /// x += Attn(norm1 x); x += FFN(norm2 x), in place. The first row of x is at `position`.
    pub(super) fn forward(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        table: &RopeTable,
        cache: &KvCache,
        position: usize,
    ) -> Result<()> {
        let rope = QkvRope { layer: self.attention, rows: RopeRows::From { table, first: position }, cache };
        let queries = ops::linear_qkv_rope(recorder, x, &self.norm_1, &self.qkv, rope)?;
        let cached = KeyValues::Cached { cache, length: position + x.rows() };
        let attended = ops::attention(recorder, self.attention, &queries, cached)?;
        self.after_attention(recorder, x, &attended)
    }

    /// As [`Self::forward`], for rows of several sequences. Their keys and values are stored from `row` on, and they
    /// attend to the segments of `passes`.
    pub(super) fn forward_batch(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        table: &RopeTable,
        cache: &KvCache,
        row: usize,
        passes: &[Vec<AttentionSegment>],
    ) -> Result<()> {
        let rope = QkvRope { layer: self.attention, rows: RopeRows::From { table, first: row }, cache };
        let queries = ops::linear_qkv_rope(recorder, x, &self.norm_1, &self.qkv, rope)?;
        let attended = ops::attention_segments(recorder, self.attention, &queries, cache, passes)?;
        self.after_attention(recorder, x, &attended)
    }

    /// As [`Self::forward`], for rows of several sequences in a paged cache, at `places`.
    pub(super) fn forward_paged(
        &self,
        recorder: &mut Recorder,
        x: &Tensor,
        cache: &KvCache,
        places: &Places,
        tables: &BlockTables,
        form: PagedForm,
    ) -> Result<()> {
        let rope = QkvRope { layer: self.attention, rows: RopeRows::Placed(places.rows()), cache };
        let queries = ops::linear_qkv_rope(recorder, x, &self.norm_1, &self.qkv, rope)?;
        let attended = ops::attention_paged(recorder, self.attention, &queries, cache, tables, form)?;
        self.after_attention(recorder, x, &attended)
    }

    fn after_attention(&self, recorder: &mut Recorder, x: &Tensor, attended: &Tensor) -> Result<()> {
        ops::linear_add(recorder, attended, &self.out, Epilogue::default(), x, 0)?;
        self.feed_forward.forward(recorder, &self.norm_2, x)
    }
}

impl FeedForward {
    async fn load(loader: &Loader, config: &LanguageConfig) -> Result<Self> {
        let Some(mixture) = config.experts else {
            let names = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"];
            return Ok(Self::Dense(Gated::load(&loader.pp("mlp"), names, config.activation).await?));
        };
        let part = loader.pp("block_sparse_moe");
        let mut experts = Vec::new();
        for expert in 0..mixture.count {
            let names = ["w1.weight", "w3.weight", "w2.weight"];
            experts.push(Gated::load(&part.pp("experts").pp(expert), names, config.activation).await?);
        }
        let router = part.matrix("gate.weight").await?;
        Ok(Self::Experts { router, experts, top_k: mixture.per_token })
    }

    /// x += FFN(norm x)
    fn forward(&self, recorder: &mut Recorder, norm: &Norm, x: &Tensor) -> Result<()> {
        match self {
            Self::Dense(gated) => {
                let inner = ops::linear_normed(recorder, x, norm, &gated.gate_up, gated.epilogue())?;
                ops::linear_add(recorder, &inner, &gated.down, Epilogue::default(), x, 0)
            }
            Self::Experts { router, experts, top_k } => {
                let normed = ops::norm(recorder, x, norm)?;
                let logits = ops::linear(recorder, &normed, router, Epilogue::default())?;
                let routing = ops::route(recorder, &logits, *top_k)?;
                let gpu = recorder.gpu().clone();
                let outputs = Tensor::temporary(&gpu, &[routing.slots(), x.columns()], "expert outputs")?;
                let normed = SharedRows::new(&normed);
                for (number, expert) in experts.iter().enumerate() {
                    let inner =
                        Tensor::temporary(&gpu, &[routing.slots(), expert.down.columns()], "expert intermediate")?;
                    let (gate_up, routes) = (&expert.gate_up, routing.routes(number, true));
                    ops::linear_routed(recorder, &normed, gate_up, expert.epilogue(), routes, &inner)?;
                    let routes = routing.routes(number, false);
                    ops::linear_routed(
                        recorder,
                        &SharedRows::of_slots(&inner),
                        &expert.down,
                        Epilogue::default(),
                        routes,
                        &outputs,
                    )?;
                }
                ops::combine(recorder, &routing, &outputs, x)
            }
        }
    }
}

impl Gated {
    async fn load(loader: &Loader, [gate, up, down]: [&str; 3], activation: Activation) -> Result<Self> {
        let gate_up = loader.interleaved(gate, up).await?;
        Ok(Self { gate_up, activation, down: loader.matrix(down).await? })
    }

    fn epilogue(&self) -> Epilogue<'static> {
        Epilogue { activation: Some(self.activation), gated: true, ..Default::default() }
    }
}
