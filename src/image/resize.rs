//! The two resamplers of the reference preprocessing: Pillow's integer bicubic and torch's bilinear.
//!
//! The pixels must equal the reference's to the bit, which resizing crates do not promise; they also need the padded
//! canvas in memory.

use super::Image;

/// An image on a larger canvas of one color. The canvas is never stored: a 12000 x 9000 photograph padded to a square
/// would take 432 MB.
#[derive(Debug, Clone, Copy)]
pub struct Canvas<'a> {
    image: &'a Image,
    width: usize,
    height: usize,
    left: usize,
    top: usize,
    fill: [u8; 3],
}

impl<'a> Canvas<'a> {
    /// The image without margins.
    pub fn new(image: &'a Image) -> Self {
        Self { image, width: image.width(), height: image.height(), left: 0, top: 0, fill: [0; 3] }
    }

    /// The image in the middle of a square of color `fill` whose side is the image's longer side. If the margins cannot
    /// be equal, the left or upper one is smaller.
    pub fn square(image: &'a Image, fill: [u8; 3]) -> Self {
        let side = image.width().max(image.height());
        let (left, top) = ((side - image.width()) / 2, (side - image.height()) / 2);
        Self { image, width: side, height: side, left, top, fill }
    }

    /// Width in pixels, margins included.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels, margins included.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Canvas rows of the image.
    fn image_rows(&self) -> std::ops::Range<usize> {
        self.top..self.top + self.image.height()
    }
}

/// A region of a resized image, in its pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// Fractional bits of Pillow's integer weights: 32 minus 8 of the samples and 2 of headroom for the kernel's overshoot.
const WEIGHT_BITS: u32 = 32 - 8 - 2;

/// The source samples of one output sample and their weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

impl Taps {
    fn end(&self) -> usize {
        self.first + self.weights.len()
    }
}

/// Cubic convolution kernel with a = -0.5, in Pillow's order of operations.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Weights for samples `range` of an axis resized from `input` to `output` samples. Shrinking widens the kernel.
fn taps(input: usize, output: usize, range: std::ops::Range<usize>) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let inverse = 1.0 / stretch;
    range
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            // `as usize` truncates and saturates at zero, like Pillow's clamp.
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(input);
            let mut weights: Vec<f64> = (first..end).map(|j| cubic((j as f64 - centre + 0.5) * inverse)).collect();
            let sum: f64 = weights.iter().sum();
            for weight in &mut weights {
                *weight /= sum;
            }
            let quantize = |weight: &f64| {
                let scaled = weight * f64::from(1u32 << WEIGHT_BITS);
                (if *weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
            };
            Taps { first, weights: weights.iter().map(quantize).collect() }
        })
        .collect()
}

/// Rounds a weighted sum to a sample. The sum starts at half a unit. |weights| sum to less than 1.5 even at an edge, so
/// 255 times them fits an i32 with 22 fractional bits.
fn round(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// The start of a weighted sum.
const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// One row of `canvas` resampled horizontally; `line` is the whole row, `[canvas.width, 3]`.
fn resample_row(line: &[u8], columns: &[Taps], out: &mut [u8]) {
    for (pixel, taps) in out.chunks_exact_mut(3).zip(columns) {
        let mut sum = [HALF; 3];
        let sources = line.get(taps.first * 3..taps.end() * 3).unwrap_or_default();
        for (source, &weight) in sources.chunks_exact(3).zip(&taps.weights) {
            for (sum, &sample) in sum.iter_mut().zip(source) {
                *sum += i32::from(sample) * weight;
            }
        }
        for (sample, sum) in pixel.iter_mut().zip(sum) {
            *sample = round(sum);
        }
    }
}

/// Resizes `canvas` to `width` x `height` with Pillow's `BICUBIC` filter, bit for bit. Computes and returns only
/// `window` of the result.
///
/// Separable: columns first, and each pass rounds to u8. Peak memory, in addition to the canvas's image, is the
/// window's width (without columns that only the margin reaches) times the source rows of the window.
///
/// # Panics
/// If `window` is empty or exceeds `width` x `height`.
pub fn bicubic(canvas: &Canvas, width: usize, height: usize, window: Window) -> Image {
    assert!(
        window.width > 0
            && window.height > 0
            && window.left + window.width <= width
            && window.top + window.height <= height,
        "{window:?} is not a part of {width} x {height}"
    );
    let columns = taps(canvas.width, width, window.left..window.left + window.width);
    let rows = taps(canvas.height, height, window.top..window.top + window.height);
    let stride = window.width * 3;

    // All rows of the margin are equal: resample one. The same samples stand left and right of the image.
    let mut line = canvas.fill.repeat(canvas.width);
    let mut margin = vec![0; stride];
    resample_row(&line, &columns, &mut margin);

    // Both ends of the taps grow with the output's index, so the columns that the image reaches are a range, and the
    // first and the last row bound the rows needed.
    let reached = columns.partition_point(|taps| taps.end() <= canvas.left)
        ..columns.partition_point(|taps| taps.first < canvas.left + canvas.image.width());
    let columns = columns.get(reached.clone()).unwrap_or_default();
    let reached = reached.start * 3..reached.start * 3 + columns.len() * 3;
    let image = canvas.image_rows();
    let first = rows.first().map_or(0, |taps| taps.first).max(image.start);
    let end = rows.last().map_or(0, Taps::end).min(image.end).max(first);
    let mut resampled = vec![0; (end - first) * reached.len()];
    let source_stride = canvas.image.width() * 3;
    let sources = canvas.image.data().chunks_exact(source_stride).skip(first - image.start);
    // No column of a window next to the image is reached.
    for (out, source) in resampled.chunks_exact_mut(reached.len().max(1)).zip(sources) {
        line[canvas.left * 3..][..source_stride].copy_from_slice(source);
        resample_row(&line, columns, out);
    }

    let mut data = vec![0; stride * window.height];
    let mut sums = vec![HALF; reached.len()];
    for (out, taps) in data.chunks_exact_mut(stride).zip(&rows) {
        // All samples of another column are equal, so the sum of their products is a product.
        let total: i32 = taps.weights.iter().sum();
        for (sample, &margin) in out.iter_mut().zip(&margin) {
            *sample = round(HALF + i32::from(margin) * total);
        }
        sums.fill(HALF);
        for (row, &weight) in (taps.first..).zip(&taps.weights) {
            let source = if (first..end).contains(&row) {
                &resampled[(row - first) * reached.len()..][..reached.len()]
            } else {
                &margin[reached.clone()]
            };
            for (sum, &sample) in sums.iter_mut().zip(source) {
                *sum += i32::from(sample) * weight;
            }
        }
        for (sample, &sum) in out[reached.clone()].iter_mut().zip(&sums) {
            *sample = round(sum);
        }
    }
    match Image::new(window.width, window.height, data) {
        Ok(image) => image,
        Err(error) => unreachable!("{error}"),
    }
}

/// Where a sample of torch's bilinear resampling comes from: two neighbours and the weight of the second.
struct Pair {
    low: usize,
    high: usize,
    weight: f32,
}

fn pairs(input: usize, output: usize) -> Vec<Pair> {
    // f32 throughout and one rounding per coordinate, as in torch: at 768 pixels another rounding of the coordinate
    // would move the result by up to 1e-4.
    let scale = input as f32 / output as f32;
    (0..output)
        .map(|i| {
            let position = scale.mul_add(i as f32 + 0.5, -0.5).max(0.0);
            let low = (position as usize).min(input - 1);
            Pair { low, high: (low + 1).min(input - 1), weight: position - low as f32 }
        })
        .collect()
}

/// Resizes planes `[channels, height, width]` to `[channels, out_height, out_width]` as torch's
/// `interpolate(mode="bilinear", align_corners=False, antialias=False)` does, up to the last bit.
///
/// # Panics
/// If a size is zero or `planes` is not a whole number of `height * width` planes.
pub fn bilinear(planes: &[f32], (height, width): (usize, usize), (out_height, out_width): (usize, usize)) -> Vec<f32> {
    assert!(
        height * width * out_height * out_width > 0 && planes.len().is_multiple_of(height * width),
        "{} values do not make planes of {height} x {width} to resize to {out_height} x {out_width}",
        planes.len()
    );
    let rows = pairs(height, out_height);
    let columns = pairs(width, out_width);
    let mut out = Vec::with_capacity(planes.len() / (height * width) * out_height * out_width);
    for plane in planes.chunks_exact(height * width) {
        for row in &rows {
            let upper = &plane[row.low * width..][..width];
            let lower = &plane[row.high * width..][..width];
            out.extend(columns.iter().map(|column| {
                let blend = |line: &[f32]| (1.0 - column.weight) * line[column.low] + column.weight * line[column.high];
                (1.0 - row.weight) * blend(upper) + row.weight * blend(lower)
            }));
        }
    }
    out
}
