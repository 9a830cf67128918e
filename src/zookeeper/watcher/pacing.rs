//! How far the replicas' loads are spread when all of them have to read a tree again.
//!
//! An outage of the ensemble ends for all replicas at once. Nobody tells them how many they are, but
//! each knows what its own last load took, most of it the server's work. So each waits for any time up
//! to [`REPLICAS`] times that: small trees are read at once, and of a large one few read it together,
//! up to ten replicas one at a time. Bounded by [`MOST`], since what is served is old meanwhile.
//! Pure: the time is an argument, and chance is the caller's.

use std::time::Duration;

use tokio::time::Instant;

/// What is served stays as it was for this long at most after the ensemble is back.
const MOST: Duration = Duration::from_secs(5);
const REPLICAS: u32 = 10;

#[derive(Debug, Default)]
pub(super) struct Pacing {
    began: Option<Instant>,
    took: Duration,
}

impl Pacing {
    pub fn begin(&mut self, now: Instant) {
        self.began = Some(now);
    }

    /// How long the load took.
    pub fn end(&mut self, now: Instant) -> Duration {
        if let Some(began) = self.began.take() {
            self.took = now.duration_since(began);
        }
        self.took
    }

    /// The longest time to wait before the next load.
    pub fn spread(&self) -> Duration {
        (self.took * REPLICAS).min(MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_goes_with_what_a_load_takes_and_is_bounded() {
        let (mut pacing, start) = (Pacing::default(), Instant::now());
        assert_eq!(pacing.spread(), Duration::ZERO);
        for (took, spread) in [(3, 30), (300, 3_000), (2_000, 5_000)] {
            pacing.begin(start);
            let took = Duration::from_millis(took);
            assert_eq!(pacing.end(start + took), took);
            assert_eq!(pacing.spread(), Duration::from_millis(spread));
        }
    }
}
