//! The draws of Python's `random`, which MMMU's evaluation takes where an answer names no option.

use mgm::diffusion::twister::Twister;

pub struct PythonRandom(Twister);

impl PythonRandom {
    /// `random.seed(seed)`: seeded by an array of one number.
    pub fn new(seed: u32) -> Self {
        Self(Twister::from_key(&[seed]))
    }

    /// `random.choice` of so many things: the place of the one that is drawn.
    pub fn below(&mut self, count: u32) -> u32 {
        let bits = 32 - count.leading_zeros();
        loop {
            // As many bits as the count has, until they are below it.
            let drawn = self.0.next() >> (32 - bits);
            if drawn < count {
                return drawn;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// random.seed(42); [random.choice(range(n)) for n in (4, 4, 4, 5, 3, 9, 7, 2, 26, 1)] in Python 3.11.
    #[test]
    fn python_draws_the_same() {
        let mut random = PythonRandom::new(42);
        let drawn: Vec<u32> = [4, 4, 4, 5, 3, 9, 7, 2, 26, 1].map(|count| random.below(count)).to_vec();
        assert_eq!(drawn, [0, 0, 2, 1, 0, 2, 5, 0, 21, 0]);
    }
}
