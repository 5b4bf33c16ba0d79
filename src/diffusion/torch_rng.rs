//! The random numbers of torch's CPU generator, so that a seed gives the same image here as in diffusers.
//!
//! The generator is the Mersenne Twister (MT19937, from the crate `rand_mt`) seeded with the low 32 bits of the seed.
//! `torch.randn` applies the Box-Muller transform to its numbers. There are two algorithms:
//!
//! * 16 or more elements: all elements are first filled with uniform numbers. In each block of 16, the first eight are
//!   the radii and the last eight the angles of eight pairs. If the last block is partial, the last 16 elements are
//!   drawn again.
//! * Fewer: pairs in f64. The second number of a pair is cached for the next element.
//!
//! For the first one, torch has vectorised code on x86 and code that calls the C library elsewhere. The vectorised code
//! computes logarithm, sine and cosine in f32 with the polynomials of the Cephes library, with fused multiply-adds
//! where its compiler fuses. This module runs the same operations in the same order: the numbers are bit-identical to
//! torch's on x86 with AVX2 and FMA. (In f16 torch has only the other code.)

use std::f64::consts::PI;

use half::f16;
use rand_mt::Mt;

use crate::tensor::Precision;

/// The element type of the noise. diffusers draws noise in the model's type, and the two types give different numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoiseType {
    /// `torch.float32`.
    F32,
    /// `torch.float16`.
    F16,
}

impl NoiseType {
    /// The type that diffusers uses for a model at this precision: f16 if it is quantised.
    pub fn for_precision(precision: Precision) -> Self {
        if precision == Precision::F32 { Self::F32 } else { Self::F16 }
    }
}

/// `torch.Generator("cpu")`.
#[derive(Debug, Clone)]
pub struct TorchRng {
    mt: Mt,
    /// The second number of the last pair of the scalar algorithm.
    cached: Option<f64>,
}

/// The number of elements from which torch draws in blocks.
const BLOCK: usize = 16;

impl TorchRng {
    /// `torch.Generator("cpu").manual_seed(seed)`.
    pub fn new(seed: u64) -> Self {
        Self { mt: Mt::new(seed as u32), cached: None }
    }

    /// `torch.randn` of `count` elements.
    pub fn randn(&mut self, count: usize, kind: NoiseType) -> Vec<f32> {
        if count < BLOCK {
            return (0..count).map(|_| kind.round(self.normal() as f32)).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform(kind)).collect();
        let whole = count - count % BLOCK;
        for block in values.chunks_exact_mut(BLOCK) {
            kind.box_muller(block);
        }
        if whole < count {
            let last = &mut values[count - BLOCK..];
            for value in &mut *last {
                *value = self.uniform(kind);
            }
            kind.box_muller(last);
        }
        values
    }

    /// Uniform in [0, 1), with as many bits as the element type holds exactly.
    fn uniform(&mut self, kind: NoiseType) -> f32 {
        let bits = match kind {
            NoiseType::F32 => 24,
            NoiseType::F16 => 11,
        };
        let number = self.mt.next_u32() & ((1 << bits) - 1);
        number as f32 / (1u32 << bits) as f32
    }

    /// A normal number from the scalar algorithm.
    fn normal(&mut self) -> f64 {
        if let Some(cached) = self.cached.take() {
            return cached;
        }
        let mut uniform = || {
            let number = u64::from(self.mt.next_u32()) << 32 | u64::from(self.mt.next_u32());
            (number & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
        };
        let (u1, u2) = (uniform(), uniform());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = 2.0 * PI * u1;
        self.cached = Some(radius * theta.sin());
        radius * theta.cos()
    }
}

impl NoiseType {
    fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
        }
    }

    /// The Box-Muller transform of 16 uniform numbers.
    fn box_muller(self, block: &mut [f32]) {
        let (radii, angles) = block.split_at_mut(BLOCK / 2);
        for (a, b) in radii.iter_mut().zip(angles) {
            let u1 = 1.0 - *a;
            match self {
                Self::F32 => {
                    let radius = (-2.0 * cephes::ln(u1)).sqrt();
                    let (sin, cos) = cephes::sin_cos(2.0 * std::f32::consts::PI * *b);
                    // Adding the mean, 0, makes a zero positive.
                    (*a, *b) = (radius * cos + 0.0, radius * sin + 0.0);
                }
                Self::F16 => {
                    // Every operation is rounded to f16.
                    let round = |value: f32| self.round(value);
                    let radius = round(round(-2.0 * round(u1.ln())).sqrt());
                    let theta = round((2.0 * PI * f64::from(*b)) as f32);
                    (*a, *b) = (round(radius * round(theta.cos())) + 0.0, round(radius * round(theta.sin())) + 0.0);
                }
            }
        }
    }
}

/// The single-precision functions of the Cephes library.
#[allow(clippy::excessive_precision)]
mod cephes {
    /// The natural logarithm of a positive normal number.
    pub fn ln(x: f32) -> f32 {
        const P: [f32; 9] = [
            7.037_683_629_2e-2,
            -1.151_461_031_0e-1,
            1.167_699_874_0e-1,
            -1.242_014_084_6e-1,
            1.424_932_278_7e-1,
            -1.666_805_766_5e-1,
            2.000_071_476_5e-1,
            -2.499_999_399_3e-1,
            3.333_333_117_4e-1,
        ];
        // x = 2^exponent * mantissa, the mantissa in [sqrt(1/2), sqrt(2)).
        let mut exponent = (x.to_bits() >> 23) as i32 - 126;
        let mut mantissa = f32::from_bits((x.to_bits() & 0x007f_ffff) | 0x3f00_0000);
        if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
            exponent -= 1;
            mantissa += mantissa;
        }
        let (x, exponent) = (mantissa - 1.0, exponent as f32);
        let square = x * x;
        let mut y = P.iter().fold(0.0f32, |sum, term| sum.mul_add(x, *term));
        y *= x;
        y = y.mul_add(square, exponent * -2.121_944_40e-4);
        y = square.mul_add(-0.5, y);
        exponent.mul_add(0.693_359_375, x + y)
    }

    /// Sine and cosine of a number that is not negative.
    pub fn sin_cos(x: f32) -> (f32, f32) {
        // The octant, rounded up to an even one.
        let octant = ((x * 1.273_239_544_735_16) as u32 + 1) & !1;
        let octants = octant as f32;
        // x - octant * pi / 4, with pi / 4 in three parts.
        let mut x = octants.mul_add(-0.785_156_25, x);
        x = octants.mul_add(-2.418_756_484_985_351_562_5e-4, x);
        x = octants.mul_add(-3.774_894_977_445_941_08e-8, x);
        let square = x * x;
        let mut cos = 2.443_315_711_809_948e-5f32.mul_add(square, -1.388_731_625_493_765e-3);
        cos = cos.mul_add(square, 4.166_664_568_298_827e-2);
        cos *= square;
        cos = cos.mul_add(square, -0.5 * square) + 1.0;
        let mut sin = (-1.951_529_589_1e-4f32).mul_add(square, 8.332_160_873_6e-3);
        sin = sin.mul_add(square, -1.666_665_461_1e-1);
        sin *= square;
        sin = sin.mul_add(x, x);
        let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
        let signed = |value: f32, negative| if negative { -value } else { value };
        (signed(sin, octant & 4 != 0), signed(cos, octant.wrapping_sub(2) & 4 == 0))
    }
}
