//! The draws of Python's `random`, which MMMU's evaluation takes where an answer names no option: the Mersenne Twister of
//! Matsumoto and Nishimura (1998), seeded as Python does.

const STATE: usize = 624;
const SHIFT: usize = 397;

pub struct PythonRandom {
    state: Vec<u32>,
    next: usize,
}

impl PythonRandom {
    /// `random.seed(seed)`: seeded by an array of one number.
    pub fn new(seed: u32) -> Self {
        let mut state = vec![19_650_218u32];
        for index in 1..STATE {
            let last = state[index - 1];
            state.push(1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(index as u32));
        }
        let mut place = 1;
        let mut mix = |factor: u32, added: &dyn Fn(usize) -> u32, times: usize| {
            for _ in 0..times {
                let last = state[place - 1];
                let mixed = state[place] ^ (last ^ (last >> 30)).wrapping_mul(factor);
                state[place] = mixed.wrapping_add(added(place));
                place += 1;
                if place == STATE {
                    state[0] = state[STATE - 1];
                    place = 1;
                }
            }
        };
        mix(1_664_525, &|_| seed, STATE);
        mix(1_566_083_941, &|place| (place as u32).wrapping_neg(), STATE - 1);
        state[0] = 0x8000_0000;
        Self { state, next: STATE }
    }

    /// `random.choice` of so many things: the place of the one that is drawn.
    pub fn below(&mut self, count: u32) -> u32 {
        let bits = 32 - count.leading_zeros();
        loop {
            // As many bits as the count has, until they are below it.
            let drawn = self.next() >> (32 - bits);
            if drawn < count {
                return drawn;
            }
        }
    }

    fn next(&mut self) -> u32 {
        if self.next == STATE {
            self.renew();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn renew(&mut self) {
        for index in 0..STATE {
            let mixed = (self.state[index] & 0x8000_0000) | (self.state[(index + 1) % STATE] & 0x7fff_ffff);
            let odd = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[index] = self.state[(index + SHIFT) % STATE] ^ (mixed >> 1) ^ odd;
        }
        self.next = 0;
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
