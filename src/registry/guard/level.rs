//! How many instances there are, and the most that there were within the window.
//!
//! It refuses to know which instances and how long the window is: it is told where it begins. The past is
//! kept as the levels that nothing later exceeded, each with the time until which it held; so it costs a step
//! no more than what it drops. Invariant: `present ≤ peak`.

use std::collections::VecDeque;

use super::Time;

#[derive(Clone, Debug, Default)]
pub(super) struct Level {
    present: i64,
    /// Falling, the oldest first: until when a level held.
    past: VecDeque<(Time, i64)>,
}

impl Level {
    /// So many more, or fewer; what is asked for later begins at `from` or after it.
    pub fn change(&mut self, now: Time, from: Time, by: i64) {
        if by != 0 {
            while self
                .past
                .back()
                .is_some_and(|(_, level)| *level <= self.present)
            {
                self.past.pop_back();
            }
            self.past.push_back((now, self.present));
            self.present += by;
        }
        while self
            .past
            .front()
            .is_some_and(|(until, level)| *until < from || *level <= self.present)
        {
            self.past.pop_front();
        }
    }

    /// So many count now that did not before, or no longer, without having come or gone: neither gain nor loss.
    pub fn turn(&mut self, by: i64) {
        self.present += by;
        for (_, level) in &mut self.past {
            *level += by;
        }
    }

    /// So many of the lost are not missed.
    pub fn accept(&mut self, lost: usize) {
        let lost = i64::try_from(lost).unwrap_or(i64::MAX);
        for (_, level) in &mut self.past {
            *level -= lost;
        }
    }

    /// In the window that begins at `from`.
    pub fn peak(&self, from: Time) -> usize {
        let at = self.past.partition_point(|(until, _)| *until < from);
        let within = self.past.get(at);
        count(within.map_or(self.present, |(_, level)| (*level).max(self.present)))
    }

    pub fn present(&self) -> usize {
        count(self.present)
    }

    /// In the window that begins at `from`.
    pub fn loss(&self, from: Time) -> usize {
        self.peak(from) - self.present()
    }

    /// Whether it says nothing that a new one would not say.
    pub fn is_over(&self, from: Time) -> bool {
        self.present == 0 && self.past.back().is_none_or(|(until, _)| *until < from)
    }
}

fn count(level: i64) -> usize {
    usize::try_from(level).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Time = 10;

    fn level(changes: &[(Time, i64)]) -> Level {
        let mut level = Level::default();
        for (now, by) in changes {
            level.change(*now, now - WINDOW, *by);
        }
        level
    }

    #[test]
    fn the_peak_is_the_most_within_the_window() {
        assert_eq!(level(&[(0, 100), (5, -30), (8, 10)]).peak(-2), 100);
        assert_eq!(level(&[(0, 100), (5, -30), (8, 10)]).loss(-2), 20);
        // At 16 the hundred, which held until 5, are out of it; the seventy held until 8.
        assert_eq!(level(&[(0, 100), (5, -30), (8, 10), (16, -1)]).peak(6), 80);
    }

    #[test]
    fn what_held_before_the_window_counts_until_it_changed() {
        assert_eq!(level(&[(0, 100), (1_000, -60)]).loss(990), 60);
    }

    #[test]
    fn a_turn_is_neither_gain_nor_loss() {
        let mut level = level(&[(0, 100), (5, -10)]);
        level.turn(-50);
        assert_eq!(
            (level.peak(0), level.present(), level.loss(0)),
            (50, 40, 10)
        );
    }

    #[test]
    fn an_accepted_loss_is_none() {
        let mut level = level(&[(0, 100), (5, -60)]);
        level.accept(55);
        assert_eq!((level.peak(0), level.loss(0)), (45, 5));
        level.accept(5);
        assert_eq!(level.loss(0), 0);
    }
}
