//! Patch info mining: the fused operator, and the statistics it needs.

use bytemuck::{Pod, Zeroable};

use super::feature_map::channels_reader;
use super::{FeatureMap, cost, element_grid};
use crate::gpu::{Access, Cost, Gpu, Kernel, Recorder, grid_1d, wgsl};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// What a cell may be: a texel of the first stage, or the average of 2 x 2.
pub(crate) const POOLS: [usize; 2] = [1, 2];
/// Texels of the first stage along a side of a window, at most.
pub(crate) const MAX_TEXELS: usize = 16;

/// The high-resolution map: four ConvNeXt stages at the size of the first, concatenated, averaged over 2 x 2 cells if
/// `pool` is 2.
#[derive(Debug, Clone)]
pub struct MiningMap {
    /// The stages, each a whole number of times smaller than the first.
    pub stages: [FeatureMap; 4],
    /// 1, or 2 for the averaged map of the HD models' global view.
    pub pool: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Stage {
    height: u32,
    width: u32,
    channels: u32,
    ratio: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StatsParams {
    stages: [Stage; 4],
    height: u32,
    width: u32,
    channels: u32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MiningParams {
    stages: [Stage; 4],
    tokens: u32,
    tokens_wide: u32,
    width: u32,
    channels: u32,
    first_row: u32,
    first_column: u32,
    padding: [u32; 2],
}

impl MiningMap {
    /// Rows of cells.
    pub fn height(&self) -> usize {
        self.stages[0].height / self.pool
    }

    /// Cells in a row.
    pub fn width(&self) -> usize {
        self.stages[0].width / self.pool
    }

    /// Channels of all stages together.
    pub fn channels(&self) -> usize {
        self.stages.iter().map(FeatureMap::channels).sum()
    }

    fn stages(&self) -> Result<[Stage; 4]> {
        let first = &self.stages[0];
        if !POOLS.contains(&self.pool)
            || !first.height.is_multiple_of(self.pool)
            || !first.width.is_multiple_of(self.pool)
        {
            return Err(Error::WrongShape {
                name: "the high-resolution map".to_owned(),
                found: vec![first.height, first.width],
                expected: format!("a multiple of {} (1 or 2) texels a cell", self.pool),
            });
        }
        let mut stages = [Stage { height: 0, width: 0, channels: 0, ratio: 1 }; 4];
        for (stage, map) in stages.iter_mut().zip(&self.stages) {
            let ratio = first.height / map.height.max(1);
            if ratio == 0 || map.height * ratio != first.height || map.width * ratio != first.width {
                return Err(Error::WrongShape {
                    name: "a feature map of the high-resolution tower".to_owned(),
                    found: vec![map.height, map.width],
                    expected: format!("a whole fraction of {} x {}", first.height, first.width),
                });
            }
            *stage = Stage {
                height: map.height as u32,
                width: map.width as u32,
                channels: map.channels() as u32,
                ratio: ratio as u32,
            };
        }
        Ok(stages)
    }

    /// Whether kernels can take channels by fours.
    fn vec4(&self) -> bool {
        self.stages.iter().all(|map| map.channels().is_multiple_of(4))
    }

    /// The stages with channels as kernels count them: by fours, or one by one.
    fn counted_stages(&self) -> Result<([Stage; 4], usize)> {
        let each = if self.vec4() { 4 } else { 1 };
        let stages = self.stages()?.map(|stage| Stage { channels: stage.channels / each as u32, ..stage });
        Ok((stages, self.channels() / each))
    }

    fn bytes(&self) -> f64 {
        self.stages.iter().map(|map| map.values.bytes() as f64).sum()
    }
}

pub(crate) fn stats_kernel(vec4: bool) -> Kernel {
    Kernel {
        overrides: vec![("POOL", 2)],
        ..Kernel::new(
            "mining_stats_pooled",
            [
                channels_reader(vec4),
                wgsl!("common/reduce_workgroup.wgsl"),
                wgsl!("mining/mining_map.wgsl"),
                wgsl!("mining/mining_stats_pooled.wgsl"),
            ],
            &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Write],
        )
    }
}

/// Invocations of the workgroups of [`products_kernel`]: few on software adapters.
pub(crate) const PRODUCTS_WORKGROUPS: [u32; 2] = [8, 64];

pub(crate) fn products_kernel(vec4: bool, neighbours: bool, workgroup: u32) -> Kernel {
    Kernel {
        overrides: vec![("NEIGHBOURS", u32::from(neighbours)), ("WORKGROUP", workgroup)],
        ..Kernel::new(
            "mining_products",
            [channels_reader(vec4), wgsl!("common/reduce_workgroup.wgsl"), wgsl!("mining/mining_products.wgsl")],
            &[Access::Read, Access::Write],
        )
    }
}

pub(crate) fn stats_bilinear_kernel() -> Kernel {
    Kernel::new(
        "mining_stats_bilinear",
        [wgsl!("mining/mining_stats_bilinear.wgsl")],
        &[Access::Read, Access::Read, Access::Read, Access::Read, Access::Write],
    )
}

/// The kernel for these windows; with `keep` it also stores the weights of the cells.
pub(crate) fn mining_kernel(window: usize, pool: usize, keep: bool, vec4: bool) -> Kernel {
    const BINDINGS: &[Access] = &[
        Access::Read,
        Access::Read,
        Access::Read,
        Access::Read,
        Access::Read,
        Access::Read,
        Access::Write,
        Access::Write,
    ];
    // Texels along a side of the window: all of the first stage's, or half as many and a border of the second's.
    let side = (window * pool).max(window * pool / 2 + 2);
    Kernel {
        overrides: vec![("POOL", pool as u32), ("WINDOW", window as u32), ("SIDE", side as u32)],
        ..Kernel::new(
            "mining",
            [
                channels_reader(vec4),
                wgsl!("mining/mining_map.wgsl"),
                wgsl!("mining/mining.wgsl"),
                if keep {
                    wgsl!("mining/mining_with_weights.wgsl")
                } else {
                    wgsl!("mining/mining_without_weights.wgsl")
                },
            ],
            if keep { BINDINGS } else { &BINDINGS[..7] },
        )
    }
}

/// Mean and 1 / sqrt(variance + eps) of every cell of the map: [height * width, 2].
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn mining_stats(recorder: &mut Recorder, map: &MiningMap, eps: f32) -> Result<Tensor> {
    let cells = map.height() * map.width();
    let stats = Tensor::temporary(recorder.gpu(), &[cells, 2], "mining statistics")?;
    let params = |(stages, channels): ([Stage; 4], usize)| StatsParams {
        stages,
        height: map.height() as u32,
        width: map.width() as u32,
        channels: channels as u32,
        eps,
    };
    if map.pool == 1 {
        let products = products(recorder, map)?;
        recorder.dispatch(
            &stats_bilinear_kernel(),
            &[&products[0], &products[1], &products[2], &products[3], &stats].map(Tensor::binding),
            &params((map.stages()?, map.channels())),
            element_grid(cells),
            cost(products.iter().map(Tensor::len).sum::<usize>() + stats.len(), 120 * cells),
        )?;
        return Ok(stats);
    }
    let [s0, s1, s2, s3] = &map.stages;
    recorder.dispatch(
        &stats_kernel(map.vec4()),
        &[s0.values.binding(), s1.values.binding(), s2.values.binding(), s3.values.binding(), stats.binding()],
        &params(map.counted_stages()?),
        grid_1d(cells),
        Cost { bytes: map.bytes(), flops: (40 * cells * map.channels()) as f64 },
    )?;
    Ok(stats)
}

/// Checks that there is a kernel for windows of `window` x `window` cells on a map averaged over `pool` x `pool`
/// texels.
///
/// # Errors
/// [`Error::Unsupported`] if not.
pub fn check_windows(window: usize, pool: usize) -> Result<()> {
    if POOLS.contains(&pool) && (1..=MAX_TEXELS / pool).contains(&window) {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: "patch info mining: cells along a side of a window, texels along a side of a cell".to_owned(),
        found: format!("{window}, {pool}"),
        supported: format!("cells of 1 or 2 texels, windows up to {MAX_TEXELS} texels"),
    })
}

/// Means of all stages' texels, and products with their neighbours: [texels, 8] each.
fn products(recorder: &mut Recorder, map: &MiningMap) -> Result<Vec<Tensor>> {
    let (stages, _) = map.counted_stages()?;
    let gpu: Gpu = recorder.gpu().clone();
    let workgroup = PRODUCTS_WORKGROUPS[usize::from(!gpu.is_software())];
    let mut all = Vec::new();
    for (stage, texels) in stages.iter().zip(&map.stages) {
        let count = texels.height * texels.width;
        let products = Tensor::temporary(&gpu, &[count, 8], "products of texels")?;
        // Cells of the first stage's size are not mixed.
        let neighbours = stage.ratio > 1;
        recorder.dispatch(
            &products_kernel(map.vec4(), neighbours, workgroup),
            &[texels.values.binding(), products.binding()],
            &[stage.height, stage.width, stage.channels, 0],
            grid_1d(count),
            cost(texels.values.len() + products.len(), if neighbours { 18 } else { 4 } * texels.values.len()),
        )?;
        all.push(products);
    }
    Ok(all)
}

/// The attended windows of one tile: folded queries u [tokens, channels] -> [tokens, channels]. The tile's tokens form
/// a square; its upper left cell in the map is (`first_row`, `first_column`), and each token has `window` x `window`
/// cells. If `attended` [height * width of the map] is given, the weight of each cell is written there.
///
/// # Errors
/// [Device errors](crate::gpu); [`Error::WrongShape`](crate::Error::WrongShape) if shapes do not fit.
pub fn mining(
    recorder: &mut Recorder,
    u: &Tensor,
    map: &MiningMap,
    stats: &Tensor,
    window: usize,
    (first_row, first_column): (usize, usize),
    attended: Option<&Tensor>,
) -> Result<Tensor> {
    let (tokens, channels) = (u.rows(), map.channels());
    let side = tokens.isqrt();
    u.expect("folded queries", &[side * side, channels])?;
    check_windows(window, map.pool)?;
    if first_row + side * window > map.height() || first_column + side * window > map.width() {
        return Err(Error::WrongShape {
            name: "the high-resolution map".to_owned(),
            found: vec![map.height(), map.width()],
            expected: format!("{side} x {side} windows of {window} x {window} cells"),
        });
    }
    stats.expect("mining statistics", &[map.height() * map.width(), 2])?;
    let y = Tensor::temporary(recorder.gpu(), &[tokens, channels], "mined windows")?;
    let (stages, counted) = map.counted_stages()?;
    let params = MiningParams {
        stages,
        tokens: tokens as u32,
        tokens_wide: side as u32,
        width: map.width() as u32,
        channels: counted as u32,
        first_row: first_row as u32,
        first_column: first_column as u32,
        padding: [0; 2],
    };
    let [s0, s1, s2, s3] = &map.stages;
    // Each stage's texels are read twice by the tokens they lie under.
    let share = (tokens * window * window) as f64 / (map.height() * map.width()) as f64;
    let mut bindings = vec![
        s0.values.binding(),
        s1.values.binding(),
        s2.values.binding(),
        s3.values.binding(),
        u.binding(),
        stats.binding(),
        y.binding(),
    ];
    if let Some(attended) = attended {
        attended.expect("weights of cells", &[map.height() * map.width()])?;
        bindings.push(attended.binding());
    }
    recorder.dispatch(
        &mining_kernel(window, map.pool, attended.is_some(), map.vec4()),
        &bindings,
        &params,
        grid_1d(tokens),
        Cost { bytes: map.bytes() * share + 2.0 * u.bytes() as f64, flops: map.bytes() * share },
    )?;
    Ok(y)
}
