//! Python's `random`, from which MMMU's evaluation draws an option if an answer names none.

use rand_mt::Mt;

pub struct PythonRandom(Mt);

impl PythonRandom {
    /// `random.seed(seed)`: seeds with an array of one number.
    pub fn new(seed: u32) -> Self {
        Self(Mt::new_with_key([seed]))
    }

    /// The index that `random.choice` picks from `count` items.
    pub fn below(&mut self, count: u32) -> u32 {
        let bits = 32 - count.leading_zeros();
        loop {
            // Draws as many bits as the count has until they are below it.
            let drawn = self.0.next_u32() >> (32 - bits);
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
    fn draws_match_python() {
        let mut random = PythonRandom::new(42);
        let drawn: Vec<u32> = [4, 4, 4, 5, 3, 9, 7, 2, 26, 1].map(|count| random.below(count)).to_vec();
        assert_eq!(drawn, [0, 0, 2, 1, 0, 2, 5, 0, 21, 0]);
    }
}
