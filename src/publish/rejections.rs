//! Tells the log which znodes were newly rejected, and not more of them than a person can read.
//!
//! It refuses to know why they were. A burst (a first load, a deployment that writes what cannot be
//! read) is told by its first few and a count. Invariant: at most [`LINES`] znodes and two counts are
//! told in a [`WINDOW`], and every rejection is either told or counted.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::registry::{Rejected, reason::without_secrets};

const LINES: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// What was told in the current window, and what still has to be counted.
#[derive(Debug, Default)]
pub struct Rejections {
    /// Nothing was told so far without one.
    ends: Option<Instant>,
    told: usize,
    counted: bool,
    more: usize,
}

impl Rejections {
    /// Tells what there is room for, and counts the rest: now if the window has no count yet.
    pub fn tell(&mut self, rejected: impl IntoIterator<Item = (String, Rejected)>) {
        for (path, Rejected { format, reason }) in rejected {
            if self.allows(Instant::now()) {
                let (znode, reason) = (shown(&path), shown(&reason));
                warn!(%znode, format, %reason, "a znode is rejected: it is not served as it stands");
            } else {
                self.more += 1;
            }
        }
        self.count(Instant::now());
    }

    /// Until a count is due; for ever if none is.
    pub async fn due(&self) {
        match self.ends {
            Some(ends) if self.more > 0 => sleep_until(ends).await,
            _ => std::future::pending().await,
        }
    }

    /// Tells the count if it is due.
    pub fn tell_count(&mut self) {
        self.count(Instant::now());
    }

    fn count(&mut self, now: Instant) {
        if let Some(more) = self.take_count(now) {
            warn!("and {more} more rejected; see /api/v1/rejected on the admin address");
        }
    }

    fn allows(&mut self, now: Instant) -> bool {
        if self.ends.is_none_or(|ends| now >= ends) {
            self.ends = Some(now + WINDOW);
            self.told = 0;
            self.counted = false;
        }
        let allowed = self.told < LINES;
        self.told += usize::from(allowed);
        allowed
    }

    fn take_count(&mut self, now: Instant) -> Option<usize> {
        let over = self.ends.is_none_or(|ends| now >= ends);
        if self.more == 0 || (self.counted && !over) {
            return None;
        }
        self.counted = true;
        Some(std::mem::take(&mut self.more))
    }
}

/// Names and reasons quote what others wrote, and more people read a log than may read the registry.
fn shown(text: &str) -> String {
    without_secrets(text).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `n` are told, with the others counted.
    fn told(rejections: &mut Rejections, n: usize, now: Instant) -> usize {
        let told = (0..n).filter(|_| rejections.allows(now)).count();
        rejections.more += n - told;
        told
    }

    #[test]
    fn the_log_hears_of_no_token_and_no_password() {
        let znode =
            "/dubbo/a.B/providers/dubbo%3A%2F%2Fadmin%3Asecret%4010.0.0.1%2Fa.B%3Ftoken%3Dhidden";
        let url = "`dubbo://admin:secret@10.0.0.1/a.B?token=hidden` has no port\n";
        for text in [znode, url] {
            let shown = shown(text);
            assert!(
                shown.contains("10.0.0.1") && shown.contains("a.B"),
                "{shown}"
            );
            for secret in ["admin", "secret", "token", "hidden", "\n"] {
                assert!(!shown.contains(secret), "{shown}");
            }
        }
    }

    #[test]
    fn a_burst_is_told_by_its_first_few_and_a_count() {
        let (mut rejections, now) = (Rejections::default(), Instant::now());
        assert_eq!(told(&mut rejections, 3, now), 3);
        assert_eq!(rejections.take_count(now), None);
        assert_eq!(told(&mut rejections, 100, now), 7);
        assert_eq!(rejections.take_count(now), Some(93));
        assert_eq!(rejections.take_count(now), None);
    }

    #[test]
    fn a_second_burst_is_counted_when_the_window_ends() {
        let (mut rejections, now) = (Rejections::default(), Instant::now());
        told(&mut rejections, 11, now);
        assert_eq!(rejections.take_count(now), Some(1));
        let later = now + WINDOW / 2;
        assert_eq!(told(&mut rejections, 5, later), 0);
        assert_eq!(rejections.take_count(later), None);
        assert_eq!(rejections.take_count(now + WINDOW), Some(5));
        assert_eq!(told(&mut rejections, 11, now + WINDOW), 10);
    }
}
