//! Moments by chance that can be had again.

/// Numbers by chance, the same for the same seed.
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    /// From a seed, which is not 0.
    pub const fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one, less than `bound`.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A number that the environment asks for.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|it| it.parse().ok())
}
