//! The pace of the audit, and what operators hear of it.
//!
//! It refuses to know what a difference is. Invariants: a registry of any size costs its ensemble the same,
//! a few reads a second; and one line in the log for each answer that shows differences, however many.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::warn;

use super::Watcher;

/// Znodes in each step: at one a second, a round over 100,000 takes half an hour.
const ZNODES: usize = 50;
const STEP: Duration = Duration::from_secs(1);
/// How long it rests after a round, so that a small tree is not read all the time.
const REST: Duration = Duration::from_secs(10);
/// As many are named in the log at once.
const NAMED: usize = 5;

impl Watcher {
    /// Has the next znodes compared; when to go on.
    pub(super) fn audit(&mut self) -> Instant {
        let step = self.tree.audit(ZNODES);
        self.metrics.audit_znodes.inc_by(step.znodes as u64);
        self.metrics.audit_rounds.inc_by(u64::from(step.round));
        Instant::now() + if step.round { REST } else { STEP }
    }

    /// Counts what the answers to the audit showed.
    pub(super) fn count_differences(&mut self) {
        let paths = self.tree.take_differences();
        if paths.is_empty() {
            return;
        }
        self.metrics.audit_differences.inc_by(paths.len() as u64);
        let others = paths.len().saturating_sub(NAMED);
        let znodes: Vec<&Arc<str>> = paths.iter().take(NAMED).collect();
        warn!(
            registry = %self.config.name, root = %self.config.root, ?znodes, others,
            "the audit found znodes other than they were known, and no watch had told; reading them again"
        );
    }
}
