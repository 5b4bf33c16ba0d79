//! Parameters of attention, as configurations have them and kernels apply them.

/// What happens to an attention's scores: multiplied by `scale`, then `cap * tanh(score / cap)`; those of keys outside
/// the window do not count.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Scores {
    /// Their factor; `None` for 1 / sqrt(head_dim).
    pub scale: Option<f32>,
    /// Their soft cap, positive.
    pub cap: Option<f32>,
    /// Keys that a query attends to, at most: its own position and those before. Causal attention only.
    pub window: Option<usize>,
}

/// The parameters of the rotary embedding's angles.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Elements of a head that are rotated, the first ones: an even number, 0 for none.
    pub rotated: usize,
    /// Divisors of the frequencies, one for each pair of elements; empty for none.
    pub freq_factors: Vec<f32>,
    /// Factor of all cosines and sines (YaRN, LongRoPE).
    pub magnitude: f32,
    /// The factor of queries that grows with their position.
    pub query_factor: Option<QueryFactor>,
}

impl Rope {
    /// Rotates whole heads of `head_dim` elements, without scaling.
    pub fn new(theta: f32, head_dim: usize) -> Self {
        Self { theta, rotated: head_dim, freq_factors: Vec::new(), magnitude: 1.0, query_factor: None }
    }
}

/// Queries are multiplied by 1 + `scale` ln(1 + floor(position / `period`)).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryFactor {
    /// Factor of the logarithm.
    pub scale: f32,
    /// Positions until the factor grows first, at least 1.
    pub period: usize,
}
