//! Bounds the lines that one kind of event may write to the log: a fleet that rejects a response would write one
//! for each client.
//!
//! Invariant: at most so many lines in a window; the first line of the next window has the count of those that
//! were left out.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const WINDOW: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Lines {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the current window began.
    began: Option<Instant>,
    written: usize,
    left_out: usize,
}

impl Lines {
    /// At most `most` lines in a minute.
    pub const fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::new(State {
                began: None,
                written: 0,
                left_out: 0,
            }),
        }
    }

    /// Whether a line may be written now; if so, how many were left out before it.
    pub fn next(&self, now: Instant) -> Option<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |began| now.saturating_duration_since(began) >= WINDOW;
        if state.began.is_none_or(over) {
            state.began = Some(now);
            state.written = 0;
        }
        if state.written == self.most {
            state.left_out += 1;
            return None;
        }
        state.written += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_over_the_limit_are_counted_in_the_next_window() {
        let (lines, now) = (Lines::new(2), Instant::now());
        let next = |at| (0..4).map(|_| lines.next(at)).collect::<Vec<_>>();
        assert_eq!(next(now), [Some(0), Some(0), None, None]);
        assert_eq!(next(now + WINDOW), [Some(2), Some(0), None, None]);
        assert_eq!(lines.next(now + 3 * WINDOW), Some(2));
    }
}
