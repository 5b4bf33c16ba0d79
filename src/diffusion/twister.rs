//! The Mersenne Twister of Matsumoto and Nishimura (1998), with a period of 2^19937 - 1.

/// Its state.
#[derive(Debug, Clone)]
pub struct Twister {
    state: Vec<u32>,
    next: usize,
}

/// Words of state, and the distance of the word that is mixed in.
const STATE: usize = 624;
const SHIFT: usize = 397;

impl Twister {
    /// Seeded by a number (`init_genrand`), as torch and numpy do.
    pub fn new(seed: u32) -> Self {
        let mut state = Vec::with_capacity(STATE);
        let mut word = seed;
        state.push(word);
        for index in 1..STATE as u32 {
            word = 1_812_433_253u32.wrapping_mul(word ^ (word >> 30)).wrapping_add(index);
            state.push(word);
        }
        Self { state, next: STATE }
    }

    /// Seeded by several numbers (`init_by_array`), as Python does.
    pub fn from_key(key: &[u32]) -> Self {
        let mut twister = Self::new(19_650_218);
        let state = &mut twister.state;
        let mut place = 1;
        let mut mix = |factor: u32, added: &dyn Fn(usize, usize) -> u32, times: usize| {
            for time in 0..times {
                let last = state[place - 1];
                let mixed = state[place] ^ (last ^ (last >> 30)).wrapping_mul(factor);
                state[place] = mixed.wrapping_add(added(time, place));
                place += 1;
                if place == STATE {
                    state[0] = state[STATE - 1];
                    place = 1;
                }
            }
        };
        let of_key = |time: usize, _| {
            let index = time % key.len().max(1);
            key.get(index).copied().unwrap_or(0).wrapping_add(index as u32)
        };
        mix(1_664_525, &of_key, STATE.max(key.len()));
        mix(1_566_083_941, &|_, place| (place as u32).wrapping_neg(), STATE - 1);
        state[0] = 0x8000_0000;
        twister
    }

    /// The next 32 bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u32 {
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
