//! How long a stream lives, so that clients spread over the replicas again after one of them was away.
//!
//! Pure: chance is an argument. Invariant: the lives of streams that were opened at once end spread
//! evenly over [`JITTER`] around the maximum age, and none ends before its connection was told to
//! take no new streams: who comes back then comes over a new connection, by way of whatever balances them.
//! Source: `MAX_CONNECTION_AGE` of gRPC's proposal A9.

use std::time::Duration;

/// A fifth of the age less or more.
const JITTER: u32 = 5;

/// The life of one stream; `chance` is any number, all being equally likely.
pub fn of_stream(age: Duration, chance: u64) -> Duration {
    // 16 bits: a resolution of some milliseconds for an age of minutes.
    let share = u32::from(u16::try_from(chance >> 48).unwrap_or(u16::MAX));
    of_connection(age) + age * 2 / JITTER / (1 << 16) * share
}

/// When a connection is told to take no new streams: before any stream of it ends.
pub fn of_connection(age: Duration) -> Duration {
    age.saturating_sub(age / JITTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_secs(1800);

    #[test]
    fn lives_are_within_a_fifth_of_the_age() {
        assert_eq!(of_stream(AGE, 0), Duration::from_secs(1440));
        let longest = of_stream(AGE, u64::MAX);
        assert!(longest <= Duration::from_secs(2160), "{longest:?}");
        assert!(longest > Duration::from_secs(2159), "{longest:?}");
    }

    #[test]
    fn lives_are_spread_evenly() {
        let lives = (0..=u64::from(u16::MAX)).map(|chance| of_stream(AGE, chance << 48));
        let late = lives.filter(|life| *life > AGE).count();
        assert!((32_000..=33_500).contains(&late), "{late}");
    }

    #[test]
    fn no_stream_ends_before_its_connection_takes_no_more() {
        for chance in [0, 1, 1 << 48, u64::MAX] {
            assert!(of_stream(AGE, chance) >= of_connection(AGE));
        }
    }
}
