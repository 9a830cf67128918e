//! Turns at an even pace: after a restart a whole fleet comes back at once.
//!
//! Pure: the time is an argument. It refuses to know what a turn is for. A turn is booked when it is
//! asked for, so turns are had in the order of asking. Invariant: never more turns in a while than the
//! pace gives, and [`BURST`] besides; nobody waits longer than he said.
//! Source: the generic cell rate algorithm, which is a token bucket without a refill.

use std::time::{Duration, Instant};

/// What may be had at once after a pause: this much time's worth of turns. Those who are served wait
/// as long as what is had at once takes.
const BURST: Duration = Duration::from_millis(20);

/// A bounded number of turns a second.
#[derive(Debug)]
pub struct Pace {
    between: Duration,
    /// When the next turn would be had if there were no bursts.
    next: Option<Instant>,
}

impl Pace {
    /// At least one a second.
    pub fn new(per_second: u32) -> Self {
        Self {
            between: Duration::from_secs(1) / per_second.max(1),
            next: None,
        }
    }

    /// How long to wait for the turn that is had hereby; `None`, and no turn, if that is longer than
    /// `patience`.
    pub fn turn(&mut self, now: Instant, patience: Duration) -> Option<Duration> {
        let unused = now.checked_sub(BURST).unwrap_or(now);
        let turn = self.next.map_or(unused, |next| next.max(unused));
        let wait = turn.saturating_duration_since(now);
        if wait > patience {
            return None;
        }
        self.next = Some(turn + self.between);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn turns(pace: &mut Pace, now: Instant, count: usize) -> Vec<Duration> {
        (0..count).map(|_| pace.turn(now, LONG).unwrap()).collect()
    }

    #[test]
    fn a_few_at_once_do_not_wait_and_the_rest_follow_at_the_pace() {
        let mut pace = Pace::new(100);
        let waits = turns(&mut pace, Instant::now(), 1_000);
        assert!(waits[..3].iter().all(Duration::is_zero), "{waits:?}");
        assert_eq!(waits[3], Duration::from_millis(10));
        assert!(waits.is_sorted());
        assert_eq!(waits[999], Duration::from_millis(9_970));
    }

    #[test]
    fn a_pause_does_not_save_up_more_than_a_burst() {
        let mut pace = Pace::new(100);
        let now = Instant::now();
        turns(&mut pace, now, 50);
        let waits = turns(&mut pace, now + LONG, 20);
        assert_eq!(waits.iter().filter(|wait| wait.is_zero()).count(), 3);
    }

    #[test]
    fn those_who_would_wait_too_long_take_no_turn() {
        let mut pace = Pace::new(10);
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let had = (0..100).filter_map(|_| pace.turn(now, second)).count();
        assert_eq!(had, 11);
        assert_eq!(pace.turn(now, second), None);
        assert!(pace.turn(now + second, second).is_some());
    }

    #[test]
    fn a_pace_of_nothing_is_one_a_second() {
        let mut pace = Pace::new(0);
        let now = Instant::now();
        assert_eq!(pace.turn(now, LONG), Some(Duration::ZERO));
        assert_eq!(pace.turn(now, LONG), Some(Duration::from_millis(980)));
    }
}
