//! A time in which nobody looked: the process was stopped or stood still. A lost connection is no such time: what
//! cut it may have ended the sessions of others as well.
//!
//! What went meanwhile is found at once, though it may have gone one by one. It is taken to have gone evenly over
//! that time, so that as much of it counts as would have been lost within one window if somebody had looked.
//! Invariant: an absence that is shorter than the window changes nothing.

use std::{collections::BTreeMap, sync::Arc};

use super::Time;

#[derive(Debug)]
pub(super) struct Absence {
    /// How long nobody looked.
    pub away: Time,
    /// What is found between these times went within that one.
    from: Time,
    until: Time,
    /// How many were found to be gone, by service.
    lost: BTreeMap<Arc<str>, usize>,
    total: usize,
}

impl Absence {
    pub fn new(away: Time, from: Time, until: Time) -> Self {
        Self {
            away,
            from,
            until,
            lost: BTreeMap::new(),
            total: 0,
        }
    }

    pub fn is_over(&self, now: Time) -> bool {
        now > self.until
    }

    pub fn covers(&self, time: Time) -> bool {
        (self.from..=self.until).contains(&time)
    }

    pub fn found(&mut self, service: &Arc<str>, lost: usize) {
        if lost > 0 {
            *self.lost.entry(Arc::clone(service)).or_default() += lost;
            self.total += lost;
        }
    }

    /// How many of those that were found do not count, of a service or of all.
    pub fn spared(&self, service: Option<&str>, window: Time) -> usize {
        let found = match service {
            Some(name) => self.lost.get(name).copied().unwrap_or(0),
            None => self.total,
        };
        found - seen(found, self.away, window)
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<str>> {
        self.lost.keys()
    }
}

/// How many of the lost would have been lost within one window.
fn seen(lost: usize, away: Time, window: Time) -> usize {
    let (Ok(away), Ok(window)) = (u128::try_from(away), u128::try_from(window)) else {
        return lost;
    };
    if away <= window {
        return lost;
    }
    usize::try_from((lost as u128 * window).div_ceil(away)).unwrap_or(lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_count_as_would_have_gone_within_a_window() {
        assert_eq!(seen(7, 21_000, 10_000), 4);
        assert_eq!(seen(100, 20_000, 10_000), 50);
        assert_eq!(seen(7, 10_000, 10_000), 7);
        assert_eq!(seen(7, -5, 10_000), 7);
        assert_eq!(seen(7, i64::MAX, 10_000), 1);
        assert_eq!(seen(0, 50_000, 10_000), 0);
    }

    #[test]
    fn what_is_found_piece_by_piece_counts_as_if_found_at_once() {
        let mut absence = Absence::new(21_000, 100, 500);
        (0..7).for_each(|_| absence.found(&"orders".into(), 1));
        assert_eq!(absence.spared(Some("orders"), 10_000), 3);
        assert_eq!(absence.spared(None, 10_000), 3);
        assert_eq!(absence.spared(Some("users"), 10_000), 0);
        assert!(!absence.is_over(500) && absence.is_over(501));
    }
}
