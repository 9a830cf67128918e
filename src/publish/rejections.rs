//! Reports rejected znodes in the log: rarely, and only those that are still rejected.
//!
//! Many znodes are rejected for a moment in an ordinary day: a process that crashed comes back before its old
//! session ends, a program creates its znode first and writes it later. And one cause often rejects many znodes at
//! once. So a rejection waits until no other follows for [`SETTLE`], those that are over by then are dropped, and
//! the others are reported by kind of reason: one line with the count and an example. Invariants: at most
//! [`LINES`] kinds and one count are reported in a [`WINDOW`], each kind once; a znode that stays rejected for the
//! same kind of reason is reported once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::registry::{Rejected, reason::without_secrets};

const LINES: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// How long nothing else must be rejected before a report.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the first rejection waits at most.
const LATEST: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Rejections {
    /// Not reported yet, by path.
    fresh: BTreeMap<String, Rejected>,
    /// When the next report is due, and when it is due at the latest.
    due: Option<(Instant, Instant)>,
    /// When the current window ends, and the kinds that were reported in it.
    ends: Option<Instant>,
    told: BTreeSet<String>,
    /// The kind of reason that each path was reported for.
    reported: BTreeMap<String, String>,
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Kind {
        znodes: usize,
        path: String,
        rejected: Rejected,
    },
    More(usize),
}

impl Rejections {
    /// Takes in what was rejected; it is reported when it is due.
    pub fn add(&mut self, rejected: impl IntoIterator<Item = (String, Rejected)>) {
        let before = self.fresh.len();
        for (path, rejected) in rejected {
            if self.reported.get(&path) != Some(&kind(&rejected)) {
                self.fresh.insert(path, rejected);
            }
        }
        if self.fresh.len() > before {
            self.settle(Instant::now());
        }
    }

    /// Until a report is due; for ever if none is.
    pub async fn due(&self) {
        match self.due {
            Some((due, _)) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Reports what `stands`, by path, is still rejected.
    pub fn report(&mut self, stands: impl Fn(&str) -> bool) {
        for line in self.take_lines(Instant::now(), stands) {
            say(line);
        }
    }

    fn settle(&mut self, now: Instant) {
        let latest = match self.due {
            // What waits for the end of the window is reported with what is new.
            Some((_, latest)) if latest <= now + LATEST => latest,
            _ => now + LATEST,
        };
        self.due = Some((latest.min(now + SETTLE), latest));
    }

    fn take_lines(&mut self, now: Instant, stands: impl Fn(&str) -> bool) -> Vec<Line> {
        if self.ends.is_none_or(|ends| now >= ends) {
            self.ends = None;
            self.told.clear();
            self.reported.retain(|path, _| stands(path));
        }
        let mut kinds = BTreeMap::<String, Vec<(String, Rejected)>>::new();
        for (path, rejected) in std::mem::take(&mut self.fresh) {
            if stands(&path) {
                kinds
                    .entry(kind(&rejected))
                    .or_default()
                    .push((path, rejected));
            }
        }
        let (mut lines, mut more) = (Vec::new(), 0);
        for (kind, znodes) in kinds {
            if self.told.contains(&kind) {
                // A line for these follows when the window ends, unless they are over by then.
                self.fresh.extend(znodes);
                continue;
            }
            for (path, _) in &znodes {
                self.reported.insert(path.clone(), kind.clone());
            }
            if self.told.len() < LINES {
                lines.extend(Line::of(znodes));
                self.told.insert(kind);
            } else {
                more += znodes.len();
            }
        }
        if more > 0 {
            lines.push(Line::More(more));
        }
        if !lines.is_empty() {
            self.ends.get_or_insert(now + WINDOW);
        }
        let waits = self.ends.filter(|_| !self.fresh.is_empty());
        self.due = waits.map(|ends| (ends, ends));
        lines
    }
}

impl Line {
    fn of(znodes: Vec<(String, Rejected)>) -> Option<Self> {
        let count = znodes.len();
        let (path, rejected) = znodes.into_iter().next()?;
        Some(Self::Kind {
            znodes: count,
            path,
            rejected,
        })
    }
}

/// What reasons of one kind have in common: the format, and the words before any detail without what they quote.
fn kind(Rejected { format, reason }: &Rejected) -> String {
    let words: String = reason.split('`').step_by(2).collect();
    let words = words.split([':', ';']).next().unwrap_or_default();
    format!("{format} {words}")
}

fn say(line: Line) {
    match line {
        Line::Kind {
            znodes,
            path,
            rejected: Rejected { format, reason },
        } => {
            let (znode, reason) = (shown(&path), shown(&reason));
            if znodes == 1 {
                warn!(%znode, format, %reason, "a znode is rejected: it is not served as it stands");
            } else {
                warn!(
                    znodes, example = %znode, format, %reason,
                    "znodes are rejected: they are not served as they stand; /api/v1/rejected lists them"
                );
            }
        }
        Line::More(more) => {
            warn!("{more} more znodes are rejected for other reasons; /api/v1/rejected lists them");
        }
    }
}

/// Names and reasons quote what others wrote, and more people read a log than may read the registry.
fn shown(text: &str) -> String {
    without_secrets(text).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(reason: &str) -> Rejected {
        Rejected {
            format: "dubbo",
            reason: reason.to_owned(),
        }
    }

    fn superseded(n: usize) -> (String, Rejected) {
        let path = format!("/dubbo/s{n}/providers/old");
        let reason = format!(
            "`10.0.0.1:20880` is registered by `/dubbo/s{n}/providers/new` too, which is newer"
        );
        (path, rejected(&reason))
    }

    /// The counts of the lines; a count of more is negative.
    fn counts(lines: &[Line]) -> Vec<isize> {
        let count = |line: &Line| match line {
            Line::Kind { znodes, .. } => isize::try_from(*znodes).unwrap(),
            Line::More(more) => -isize::try_from(*more).unwrap(),
        };
        lines.iter().map(count).collect()
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
    fn many_znodes_with_one_cause_are_one_line() {
        let (mut rejections, now) = (Rejections::default(), Instant::now());
        rejections.add((0..20).map(superseded));
        assert_eq!(counts(&rejections.take_lines(now, |_| true)), [20]);
        // Those that follow have a line when the window ends, if they are still rejected.
        rejections.add((20..25).map(superseded));
        assert!(rejections.take_lines(now + SETTLE, |_| true).is_empty());
        assert_eq!(rejections.due, Some((now + WINDOW, now + WINDOW)));
        let left = |path: &str| !path.starts_with("/dubbo/s20");
        assert_eq!(counts(&rejections.take_lines(now + WINDOW, left)), [4]);
        assert_eq!(rejections.due, None);
    }

    #[test]
    fn what_is_over_before_the_report_is_not_reported() {
        let (mut rejections, now) = (Rejections::default(), Instant::now());
        rejections.add((0..20).map(superseded));
        assert!(rejections.take_lines(now, |_| false).is_empty());
        assert_eq!(rejections.due, None);
        rejections.add([superseded(1)]);
        assert_eq!(
            counts(&rejections.take_lines(now, |_| true)),
            [1],
            "no window began"
        );
    }

    #[test]
    fn a_znode_that_stays_rejected_is_news_only_for_another_kind_of_reason() {
        let (mut rejections, now) = (Rejections::default(), Instant::now());
        let name = |why: &str| {
            let reason = format!("host name `db` cannot be resolved: {why}");
            [("/services/s/i".to_owned(), rejected(&reason))]
        };
        rejections.add(name("no answer within 5s"));
        assert_eq!(counts(&rejections.take_lines(now, |_| true)), [1]);
        rejections.add(name("Temporary failure in name resolution"));
        assert_eq!(rejections.due, None, "the same kind");
        rejections.add([("/services/s/i".to_owned(), rejected("`x` has no port"))]);
        assert_eq!(counts(&rejections.take_lines(now, |_| true)), [1]);
    }

    #[test]
    fn a_burst_of_many_reasons_is_a_few_lines_and_a_count() {
        let (mut rejections, now) = (Rejections::default(), Instant::now());
        let odd = |n: usize| (format!("/services/s/{n}"), rejected(&format!("reason {n}")));
        rejections.add((0..200).map(odd));
        let mut expected = [1; LINES].to_vec();
        expected.push(-190);
        assert_eq!(counts(&rejections.take_lines(now, |_| true)), expected);
        assert_eq!(rejections.due, None);
    }

    #[test]
    fn a_report_waits_for_what_follows_and_not_for_ever() {
        let (mut rejections, now) = (Rejections::default(), Instant::now());
        rejections.settle(now);
        assert_eq!(rejections.due, Some((now + SETTLE, now + LATEST)));
        rejections.settle(now + SETTLE / 2);
        assert_eq!(
            rejections.due,
            Some((now + SETTLE / 2 + SETTLE, now + LATEST))
        );
        rejections.settle(now + LATEST - SETTLE / 2);
        assert_eq!(rejections.due, Some((now + LATEST, now + LATEST)));
    }
}
