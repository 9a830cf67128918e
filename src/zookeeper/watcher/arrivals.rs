//! When the changes arrived that were not published yet: where the measure of propagation begins.
//!
//! It refuses to know paths and clocks. Only the first and the last arrival are kept: a batch that
//! leaves some changes behind, whose reads are still on their way, leaves them the last arrival. So
//! what is measured is never longer than it was, and a steady stream cannot make it grow.

use std::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Arrivals(Option<(Instant, Instant)>);

impl Arrivals {
    pub fn note(&mut self, now: Instant) {
        let first = self.0.map_or(now, |(first, _)| first);
        self.0 = Some((first, now));
    }

    /// The first arrival, for the batch that is taken now.
    pub fn take(&mut self) -> Option<Instant> {
        let (first, last) = self.0?;
        self.0 = Some((last, last));
        Some(first)
    }

    /// Nothing is left to publish.
    pub fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_batch_has_the_first_arrival_and_what_it_leaves_behind_the_last() {
        let (mut arrivals, start) = (Arrivals::default(), Instant::now());
        assert_eq!(arrivals.take(), None);
        let times = [0, 1, 2].map(|ms| start + Duration::from_millis(ms));
        for now in times {
            arrivals.note(now);
        }
        assert_eq!(arrivals.take(), Some(times[0]));
        assert_eq!(arrivals.take(), Some(times[2]));
        arrivals.clear();
        assert_eq!(arrivals.take(), None);
    }
}
