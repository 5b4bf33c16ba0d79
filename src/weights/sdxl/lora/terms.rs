//! The change that an adapter makes to a weight, computed for the rows that are read.
//!
//! No term is held as a whole: small factors are read again for each range of rows, large ones row by row.

use std::cell::OnceCell;
use std::ops::Range;
use std::rc::Rc;

use crate::io::LocalFuture;
use crate::weights::checkpoint::{Checkpoint, Delta};
use crate::{Error, Result};

/// Bytes per read when all rows of a weight are read.
const CHUNK_BYTES: usize = 8 << 20;

/// Largest rank of a core. Core and down matrix become one matrix with this many rows, which is not in the file.
const MAX_CORE_RANK: usize = 4096;

/// The weight to change, as a matrix.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub name: String,
    pub shape: Vec<usize>,
}

impl Target {
    fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// All dimensions after the first.
    fn columns(&self) -> usize {
        product(self.shape.get(1..).unwrap_or_default())
    }

    /// Height times width of a convolution's kernel; 1 for a matrix.
    fn taps(&self) -> usize {
        product(self.shape.get(2..).unwrap_or_default())
    }

    fn channels(&self) -> usize {
        self.shape.get(1).copied().unwrap_or(1)
    }

    /// [`Error::WrongShape`] of tensor `name` in `file`.
    fn wrong(&self, file: &Checkpoint, name: &str, expected: &str) -> Error {
        let found = file.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        let Self { name: target, shape } = self;
        let expected = format!("{expected}, since {target} has {shape:?}: is the file for another model?");
        Error::WrongShape { name: name.to_owned(), found, expected }
    }
}

fn product(sizes: &[usize]) -> usize {
    sizes.iter().fold(1, |product: usize, size| product.saturating_mul(*size))
}

/// Rows, and all further dimensions as columns. A scalar and a vector have one column.
fn matrix(file: &Checkpoint, name: &str) -> Result<(usize, usize)> {
    let shape = &file.info(name).ok_or_else(|| file.missing(name))?.shape;
    Ok((shape.first().copied().unwrap_or(1), product(shape.get(1..).unwrap_or_default())))
}

/// A product of two matrices, with a core between them in Tucker's decomposition of a convolution:
/// `sum_pq up[row, p] * core[p, q, tap] * down[q, channel]`.
#[derive(Debug, Clone)]
pub(super) struct Product {
    /// [rows, rank].
    pub up: String,
    /// The file has [rank, rows].
    pub up_transposed: bool,
    /// [rank, rank, height, width].
    pub core: Option<String>,
    /// [rank, columns], or [rank, channels] with a core.
    pub down: String,
}

impl Product {
    /// The rank, if the product has the rows, columns and taps of `target`.
    fn check(&self, file: &Checkpoint, target: &Target, rows: usize, columns: usize) -> Result<usize> {
        let (up, down) = (matrix(file, &self.up)?, matrix(file, &self.down)?);
        let (up_rows, up_rank) = if self.up_transposed { (up.1, up.0) } else { up };
        let (core, down_columns) = match &self.core {
            None => ((down.0, down.0), columns),
            Some(core) => {
                let shape = &file.info(core).ok_or_else(|| file.missing(core))?.shape;
                let taps = product(shape.get(2..).unwrap_or_default());
                if shape.len() < 2 || taps != target.taps() || shape[0] > MAX_CORE_RANK {
                    let expected = format!("rank x rank x {} elements, ranks up to {MAX_CORE_RANK}", target.taps());
                    return Err(target.wrong(file, core, &expected));
                }
                ((shape[0], shape[1]), columns.checked_div(taps).unwrap_or(0))
            }
        };
        if down.0 == 0 || down.0 != core.1 || down.1 != down_columns {
            return Err(target.wrong(file, &self.down, &format!("rank x {down_columns} elements")));
        }
        if up_rank != core.0 || up_rows != rows {
            return Err(target.wrong(file, &self.up, &format!("{rows} rows of {} elements", core.0)));
        }
        Ok(down.0)
    }

    /// Rows of the up matrix: [rows, rank].
    async fn up(&self, file: &Checkpoint, rows: Range<usize>) -> Result<Vec<f32>> {
        if !self.up_transposed {
            return file.read_rows(&self.up, rows).await;
        }
        let whole = file.read(&self.up).await?;
        let (rank, count) = matrix(file, &self.up)?;
        let row = |row: usize| (0..rank).map(move |rank| rank * count + row);
        Ok(rows.flat_map(row).filter_map(|place| whole.get(place).copied()).collect())
    }

    /// [rank, columns].
    async fn down(&self, file: &Checkpoint) -> Result<Vec<f32>> {
        let down = file.read(&self.down).await?;
        let Some(core) = &self.core else { return Ok(down) };
        let shape = file.info(core).ok_or_else(|| file.missing(core))?.shape.clone();
        let (inner, taps) = (shape.get(1).copied().unwrap_or(0).max(1), product(shape.get(2..).unwrap_or_default()));
        let core = file.read(core).await?;
        let channels = down.len() / inner;
        let mut columns = Vec::with_capacity(core.len() / inner * channels);
        for core in core.chunks_exact((inner * taps).max(1)) {
            for channel in 0..channels {
                let term = |tap| (0..inner).map(|q| core[q * taps + tap] * down[q * channels + channel]).sum::<f32>();
                columns.extend((0..taps).map(term));
            }
        }
        Ok(columns)
    }

    /// Adds `factor` times rows of the product to `values`, rows of `columns` elements.
    async fn add(
        &self,
        file: &Checkpoint,
        rows: Range<usize>,
        values: &mut [f32],
        columns: usize,
        factor: f32,
    ) -> Result<()> {
        let count = rows.len().max(1);
        let up = self.up(file, rows).await?;
        let down = self.down(file).await?;
        let rank = (up.len() / count).max(1);
        for (row, up) in values.chunks_exact_mut(columns.max(1)).zip(up.chunks_exact(rank)) {
            for (up, down) in up.iter().zip(down.chunks_exact(columns.max(1))) {
                let weight = up * factor;
                row.iter_mut().zip(down).for_each(|(value, down)| *value += weight * down);
            }
        }
        Ok(())
    }
}

/// A factor of a Kronecker product.
#[derive(Debug, Clone)]
pub(super) enum Factor {
    Whole(String),
    Product(Product),
}

impl Factor {
    /// Rows and columns, as the tensors' shapes say; for the first factor, which has no taps.
    fn size(&self, file: &Checkpoint) -> Result<(usize, usize)> {
        match self {
            Self::Whole(name) => matrix(file, name),
            Self::Product(product) => Ok((matrix(file, &product.up)?.0, matrix(file, &product.down)?.1)),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Whole(name) => name,
            Self::Product(product) => &product.up,
        }
    }

    /// The rank, if it is a product.
    fn check(&self, file: &Checkpoint, target: &Target, rows: usize, columns: usize) -> Result<Option<usize>> {
        match self {
            Self::Whole(name) if matrix(file, name)? == (rows, columns) => Ok(None),
            Self::Whole(name) => Err(target.wrong(file, name, &format!("{rows} rows of {columns} elements"))),
            Self::Product(product) => product.check(file, target, rows, columns).map(Some),
        }
    }

    /// Rows of `columns` elements.
    async fn rows(&self, file: &Checkpoint, rows: Range<usize>, columns: usize) -> Result<Vec<f32>> {
        match self {
            Self::Whole(name) => file.read_rows(name, rows).await,
            Self::Product(product) => {
                let mut values = vec![0.0; rows.len() * columns];
                product.add(file, rows, &mut values, columns, 1.0).await?;
                Ok(values)
            }
        }
    }
}

/// What is added to a weight.
#[derive(Debug, Clone)]
pub(super) enum Term {
    /// LoRA.
    Product(Product),
    /// LoHa: the elementwise product of two products.
    Hadamard([Product; 2]),
    /// LoKr: `W[i * b + k, (j * d + l) * taps + tap] = first[i, j] * second[k, l * taps + tap]`.
    Kronecker([Factor; 2]),
    /// A difference of whole weights or biases.
    Difference(String),
    /// IA³: the weight times these factors, of rows or of input channels.
    Vector { name: String, on_input: bool },
}

impl Term {
    /// The rank that alpha is divided by, if the term fits `target`; `None` if the term has no rank.
    pub fn check(&self, file: &Checkpoint, target: &Target) -> Result<Option<usize>> {
        let (rows, columns) = (target.rows(), target.columns());
        match self {
            Self::Product(product) => product.check(file, target, rows, columns).map(Some),
            Self::Hadamard([first, second]) => {
                second.check(file, target, rows, columns)?;
                first.check(file, target, rows, columns).map(Some)
            }
            Self::Kronecker([first, second]) => {
                let (first_rows, first_columns) = first.size(file)?;
                let fits = |whole: usize, part: usize| part > 0 && whole.is_multiple_of(part);
                if !fits(rows, first_rows) || !fits(target.channels(), first_columns) {
                    let expected = format!("rows that divide {rows} and columns that divide {}", target.channels());
                    return Err(target.wrong(file, first.name(), &expected));
                }
                let inner = first.check(file, target, first_rows, first_columns)?;
                let outer = second.check(file, target, rows / first_rows, columns / first_columns)?;
                Ok(outer.or(inner))
            }
            Self::Difference(name) if matrix(file, name)? == (rows, columns) => Ok(None),
            Self::Difference(name) => Err(target.wrong(file, name, "the same shape")),
            Self::Vector { name, on_input } => {
                let count = if *on_input { target.channels() } else { rows };
                if file.info(name).and_then(|info| info.elements()) == Some(count as u64) {
                    return Ok(None);
                }
                Err(target.wrong(file, name, &format!("{count} elements")))
            }
        }
    }

    /// Adds `factor` times rows of the term to `values`, the same rows of the weight.
    async fn add(
        &self,
        file: &Checkpoint,
        target: &Target,
        rows: Range<usize>,
        values: &mut [f32],
        factor: f32,
    ) -> Result<()> {
        let columns = target.columns();
        match self {
            Self::Product(product) => product.add(file, rows, values, columns, factor).await,
            Self::Hadamard([first, second]) => {
                let mut terms = [vec![0.0; values.len()], vec![0.0; values.len()]];
                for (product, term) in [first, second].into_iter().zip(&mut terms) {
                    product.add(file, rows.clone(), term, columns, 1.0).await?;
                }
                let [first, second] = terms;
                let terms = first.iter().zip(&second);
                values.iter_mut().zip(terms).for_each(|(value, (first, second))| *value += factor * first * second);
                Ok(())
            }
            Self::Kronecker(factors) => kronecker(file, factors, target, rows, values, factor).await,
            Self::Difference(name) => {
                let difference = file.read_rows(name, rows).await?;
                values.iter_mut().zip(difference).for_each(|(value, difference)| *value += factor * difference);
                Ok(())
            }
            Self::Vector { name, on_input } => {
                let factors = file.read(name).await?;
                let taps = target.taps().max(1);
                for (row, values) in rows.zip(values.chunks_exact_mut(columns.max(1))) {
                    for (channel, values) in values.chunks_exact_mut(taps).enumerate() {
                        let place = if *on_input { channel } else { row };
                        // IA³ vectors have one dimension or [1, N, 1, 1], so all of them was read.
                        let by = 1.0 + factor * factors.get(place).copied().unwrap_or(0.0);
                        values.iter_mut().for_each(|value| *value *= by);
                    }
                }
                Ok(())
            }
        }
    }
}

async fn kronecker(
    file: &Checkpoint,
    [first, second]: &[Factor; 2],
    target: &Target,
    rows: Range<usize>,
    values: &mut [f32],
    factor: f32,
) -> Result<()> {
    let (first_rows, first_columns) = first.size(file)?;
    let count = (target.rows() / first_rows.max(1)).max(1);
    let columns = (target.columns() / first_columns.max(1)).max(1);
    if rows.is_empty() {
        return Ok(());
    }
    let first_range = rows.start / count..(rows.end - 1) / count + 1;
    let first_values = first.rows(file, first_range.clone(), first_columns).await?;
    // A range with fewer rows than the second factor meets each of them once at most.
    let whole = if rows.len() >= count { Some(second.rows(file, 0..count, columns).await?) } else { None };
    let mut left = values;
    for (index, first) in first_range.zip(first_values.chunks_exact(first_columns.max(1))) {
        let start = rows.start.max(index * count) - index * count;
        let end = rows.end.min((index + 1) * count) - index * count;
        let read;
        let second = match &whole {
            Some(whole) => &whole[start * columns..end * columns],
            None => {
                read = second.rows(file, start..end, columns).await?;
                &read[..]
            }
        };
        let (part, rest) = left.split_at_mut((end - start) * target.columns());
        left = rest;
        for (row, second) in part.chunks_exact_mut(target.columns().max(1)).zip(second.chunks_exact(columns)) {
            for (values, first) in row.chunks_exact_mut(columns).zip(first) {
                let weight = first * factor;
                values.iter_mut().zip(second).for_each(|(value, second)| *value += weight * second);
            }
        }
    }
    Ok(())
}

/// DoRA's magnitudes: after the term is added, rows or input channels are scaled to these norms.
pub(super) struct Magnitudes {
    /// Tensor of the adapter file.
    pub name: String,
    /// Norms of input channels, not of rows.
    pub of_channels: bool,
    /// The model before this file, from which the norms of channels are computed.
    pub base: Rc<Checkpoint>,
    /// Factors of channels, once they are known.
    pub factors: OnceCell<Vec<f32>>,
}

impl Magnitudes {
    pub fn new(file: &Checkpoint, name: &str, by_peft: bool, base: &Rc<Checkpoint>, target: &Target) -> Result<Self> {
        let shape = &file.info(name).ok_or_else(|| file.missing(name))?.shape;
        let elements = product(shape);
        // PEFT's are of rows, [1, rows, 1, 1] for convolutions; LyCORIS has [rows, 1, …] or [1, channels, …].
        let of_rows = by_peft || shape.len() < 2 || (shape[0] == target.rows() && elements == target.rows());
        let expected = if of_rows { target.rows() } else { target.channels() };
        if elements != expected {
            let (rows, channels) = (target.rows(), target.channels());
            return Err(target.wrong(file, name, &format!("{rows} norms of rows or {channels} of input channels")));
        }
        let (base, factors) = (Rc::clone(base), OnceCell::new());
        Ok(Self { name: name.to_owned(), of_channels: !of_rows, base, factors })
    }
}

/// An adapter of one weight or bias.
pub(super) struct Adapter {
    pub file: Rc<Checkpoint>,
    pub target: Target,
    pub term: Term,
    /// Alpha over the rank, as the file has it.
    pub factor: f32,
    /// The caller's scale.
    pub strength: f32,
    pub magnitudes: Option<Magnitudes>,
}

impl Adapter {
    /// The factors of input channels that bring their norms, over all rows of the changed weight, to the magnitudes.
    async fn channel_factors<'a>(&self, magnitudes: &'a Magnitudes) -> Result<&'a [f32]> {
        if let Some(factors) = magnitudes.factors.get() {
            return Ok(factors);
        }
        let Self { file, target, term, factor, .. } = self;
        let columns = target.columns();
        let mut sums = vec![0.0f64; target.channels()];
        let chunk = (CHUNK_BYTES / 4 / columns.max(1)).max(1);
        for start in (0..target.rows()).step_by(chunk) {
            let rows = start..target.rows().min(start + chunk);
            let mut values = magnitudes.base.read_rows(&target.name, rows.clone()).await?;
            term.add(file, target, rows, &mut values, *factor).await?;
            for row in values.chunks_exact(columns.max(1)) {
                for (sum, values) in sums.iter_mut().zip(row.chunks_exact(target.taps().max(1))) {
                    *sum += square(values);
                }
            }
        }
        let factors = file.read(&magnitudes.name).await?;
        let factors = factors.iter().zip(sums).map(|(magnitude, sum)| to_magnitude(*magnitude, sum)).collect();
        Ok(magnitudes.factors.get_or_init(|| factors))
    }

    /// Changes rows of W to `W + strength * (factors * (W + term) - W)`.
    async fn decompose(&self, magnitudes: &Magnitudes, rows: Range<usize>, values: &mut [f32]) -> Result<()> {
        let Self { file, target, term, factor, strength, .. } = self;
        let columns = target.columns().max(1);
        let before = if *strength == 1.0 { Vec::new() } else { values.to_vec() };
        term.add(file, target, rows.clone(), values, *factor).await?;
        if magnitudes.of_channels {
            let factors = self.channel_factors(magnitudes).await?;
            for row in values.chunks_exact_mut(columns) {
                for (values, by) in row.chunks_exact_mut(target.taps().max(1)).zip(factors) {
                    values.iter_mut().for_each(|value| *value *= by);
                }
            }
        } else {
            let all = file.read(&magnitudes.name).await?;
            for (row, values) in rows.zip(values.chunks_exact_mut(columns)) {
                let by = to_magnitude(all.get(row).copied().unwrap_or(0.0), square(values));
                values.iter_mut().for_each(|value| *value *= by);
            }
        }
        // Empty at a scale of 1.
        values.iter_mut().zip(before).for_each(|(value, before)| *value = before + strength * (*value - before));
        Ok(())
    }
}

fn square(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum()
}

/// The factor that brings values with this sum of squares to a magnitude. A row of zeros stays one.
fn to_magnitude(magnitude: f32, sum: f64) -> f32 {
    if sum > 0.0 { (f64::from(magnitude) / sum.sqrt()) as f32 } else { 0.0 }
}

impl Delta for Adapter {
    fn apply<'a>(&'a self, rows: Range<usize>, values: &'a mut [f32]) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            match &self.magnitudes {
                Some(magnitudes) => self.decompose(magnitudes, rows, values).await,
                None => {
                    let factor = self.strength * self.factor;
                    self.term.add(&self.file, &self.target, rows, values, factor).await
                }
            }
        })
    }
}
