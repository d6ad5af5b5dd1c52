//! Random numbers.

/// Random numbers (SplitMix64: Steele, Lea and Flood, OOPSLA 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of a mutant of a seed.
    pub fn new(seed: u64, mutant: u64) -> Self {
        let mut random = Self(seed);
        random.0 = random.bits() ^ mutant.wrapping_mul(0xD1B5_4A32_D192_ED03);
        random.bits();
        random
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        let n = u64::try_from(n.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.bits() % n).unwrap_or_default()
    }

    /// From `low` to `high`, both included.
    pub fn from_to(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of some values.
    pub fn of<T: Clone>(&mut self, values: &[T]) -> Option<T> {
        values.get(self.below(values.len())).cloned()
    }

    /// One of a list that has at least one value, its first.
    pub fn one<T: Clone, const N: usize>(&mut self, values: [T; N]) -> T {
        const { assert!(N > 0) };
        values[self.below(N)].clone()
    }

    /// One of the words of a text.
    pub fn word(&mut self, text: &'static str) -> &'static str {
        let words: Vec<&str> = text.split_whitespace().collect();
        self.of(&words).unwrap_or_default()
    }

    /// From 0 to 1.
    pub fn unit(&mut self) -> f64 {
        f64::from(u32::try_from(self.bits() >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
    }

    /// Nearly a normal number: a sum of uniform ones.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn a_mutant_has_its_own_numbers_each_time() {
        let numbers = |seed, mutant| {
            let mut random = Random::new(seed, mutant);
            [random.bits(), random.bits()]
        };
        assert_eq!(numbers(1, 2), numbers(1, 2));
        assert_ne!(numbers(1, 2), numbers(1, 3));
        assert_ne!(numbers(1, 2), numbers(2, 2));
    }

    #[test]
    fn numbers_stay_in_their_range() {
        let mut random = Random::new(0, 0);
        assert!((0..1000).all(|_| (3..=5).contains(&random.from_to(3, 5)) && random.below(0) == 0));
        let mean = (0..10_000).map(|_| random.normal()).sum::<f64>() / 10_000.0;
        // the mean of 10,000 normal numbers has the deviation 0.01
        assert!(mean.abs() < 0.05, "{mean}");
    }
}
