//! Bugs on purpose: the tests of the real binary show by them that they would notice such bugs.
//!
//! Only builds with debug assertions have them, and of such a build no package or image for others
//! is made; in every other build the questions here are constants, and always answered with no.

/// Which bugs this process has; none unless a test asks for one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Planted {
    #[cfg(debug_assertions)]
    early_ack: bool,
    #[cfg(debug_assertions)]
    stale_reads: bool,
}

impl Planted {
    /// The bug called `name`; none where there is no such bug, or this build can have none.
    #[cfg_attr(not(debug_assertions), allow(unused_variables, reason = "there are no names here"))]
    pub fn named(name: &str) -> Self {
        #[cfg(debug_assertions)]
        return Self { early_ack: name == "early-ack", stale_reads: name == "stale-reads" };
        #[cfg(not(debug_assertions))]
        Self::default()
    }

    /// Whether entries of the log count as durable a while before they are.
    pub(crate) fn acks_early(self) -> bool {
        #[cfg(debug_assertions)]
        return self.early_ack;
        #[cfg(not(debug_assertions))]
        false
    }

    /// Whether every read is answered with what this server happens to have.
    pub(crate) fn reads_stale(self) -> bool {
        #[cfg(debug_assertions)]
        return self.stale_reads;
        #[cfg(not(debug_assertions))]
        false
    }
}
