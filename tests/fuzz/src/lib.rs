//! Inputs that are almost right, made from a corpus and a seed: the same on every machine.
//!
//! A target is a plain test: it gives every input of its corpus, and then inputs made of them, to a
//! function that must not panic. `corpus/<target>.txt` has an input a line, with Rust's escapes; an
//! input that fails is printed as such a line, to be added there before it is mended.
//! `HAWSER_FUZZ_CASES` makes a run longer, `HAWSER_FUZZ_SEED` another one.

mod corpus;
mod draw;
mod mutate;

use std::env;
use std::str::FromStr;

pub use corpus::{escaped, unescaped};
use draw::Draw;
use mutate::Mutator;

/// What is to be tried on a function.
#[derive(Debug)]
pub struct Target {
    name: &'static str,
    corpus: Vec<Vec<u8>>,
    cases: u64,
    octets_max: usize,
}

impl Target {
    /// The target whose corpus is `corpus/<name>.txt`.
    ///
    /// # Panics
    /// A line of it cannot be read.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, corpus: corpus::read(name), cases: CASES, octets_max: OCTETS_MAX }
    }

    /// Adds inputs that were made or read elsewhere.
    #[must_use]
    pub fn also(mut self, inputs: impl IntoIterator<Item = Vec<u8>>) -> Self {
        self.corpus.extend(inputs);
        self
    }

    /// How many inputs are made, where the environment does not say; 20,000 unless set.
    #[must_use]
    pub const fn cases(mut self, cases: u64) -> Self {
        self.cases = cases;
        self
    }

    /// How long a made input is at most; 4 KiB unless set.
    #[must_use]
    pub const fn octets_max(mut self, octets: usize) -> Self {
        self.octets_max = octets;
        self
    }

    /// Gives `tried` every input, which says whether it was a good one.
    ///
    /// # Panics
    /// When `tried` does; the input is printed first. Also without a corpus, and when no input was good, or all were:
    /// such a run shows nothing.
    pub fn run(self, mut tried: impl FnMut(&[u8]) -> bool) {
        assert!(!self.corpus.is_empty(), "{}: there is no corpus", self.name);
        let cases = number("HAWSER_FUZZ_CASES").unwrap_or(self.cases);
        let seed = number("HAWSER_FUZZ_SEED").unwrap_or(SEED);
        let mut good = 0_u64;
        let mut give = |input: &[u8]| {
            let shown = Shown { target: self.name, input };
            good += u64::from(tried(input));
            drop(shown);
        };
        self.corpus.iter().for_each(|input| give(input));
        let mutator = Mutator::new(&self.corpus, self.octets_max);
        let mut draw = Draw::new(seed);
        for _ in 0..cases {
            give(&mutator.input(&mut draw));
        }
        let all = cases + self.corpus.len() as u64;
        assert!(good > 0, "{}: none of {all} inputs was good", self.name);
        assert!(good < all, "{}: all of {all} inputs were good", self.name);
    }
}

/// Prints the input if what it is given to panics.
struct Shown<'a> {
    target: &'static str,
    input: &'a [u8],
}

impl Drop for Shown<'_> {
    #[allow(clippy::print_stderr, reason = "it is read by whoever sees the test fail")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("tests/fuzz/corpus/{}.txt: {}", self.target, escaped(self.input));
        }
    }
}

fn number<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    let read = text.parse().ok();
    assert!(read.is_some(), "{name} is a number, not {text:?}");
    read
}

const CASES: u64 = 20_000;
const OCTETS_MAX: usize = 4 * 1024;
const SEED: u64 = 0x4A57_5E12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_inputs_and_they_stay_within_their_bound() {
        let corpus = vec![b"GET / HTTP/1.1".to_vec(), vec![0xff; 60], Vec::new()];
        let made = || {
            let mutator = Mutator::new(&corpus, 64);
            let mut draw = Draw::new(7);
            (0..2_000).map(|_| mutator.input(&mut draw)).collect::<Vec<_>>()
        };
        let inputs = made();
        assert_eq!(inputs, made());
        assert!(inputs.iter().all(|input| input.len() <= 64));
        let distinct: std::collections::BTreeSet<_> = inputs.iter().collect();
        assert!(distinct.len() > 1_500, "{} of 2,000 are their own", distinct.len());
    }

    #[test]
    #[should_panic(expected = "found")]
    fn what_panics_is_found() {
        Target::new("tests").also([b"aaaa".to_vec()]).run(|input| {
            assert!(!input.contains(&b'"'), "found");
            input == b"aaaa"
        });
    }

    #[test]
    #[should_panic(expected = "none of")]
    fn a_run_in_which_nothing_is_good_shows_nothing() {
        Target::new("tests").also([b"a".to_vec()]).cases(10).run(|_| false);
    }
}
