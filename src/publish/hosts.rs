//! Host names on their way to who looks them up, and how long the first publication waits for them.
//!
//! A process that begins knows no address of a name. What it published then would lack instances that
//! the one before it served, so it waits until each name was looked up once; but not for ever, as
//! names may be bad for ever.

use std::sync::Arc;
use std::time::Duration;

use imbl::OrdSet;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::warn;

/// Longer than resolvers usually take to give up.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(super) struct Hosts {
    wanted: watch::Sender<OrdSet<Arc<str>>>,
    /// When the first publication waits no longer.
    until: Option<Instant>,
}

impl Hosts {
    pub fn new() -> (Self, watch::Receiver<OrdSet<Arc<str>>>) {
        let (wanted, reader) = watch::channel(OrdSet::new());
        let until = None;
        (Self { wanted, until }, reader)
    }

    pub fn want(&self, now: OrdSet<Arc<str>>) {
        self.wanted.send_if_modified(|wanted| {
            let news = !wanted.ptr_eq(&now) && *wanted != now;
            if news {
                *wanted = now;
            }
            news
        });
    }

    /// Whether to publish though, or because, `missing` names were not looked up yet. Asked once all
    /// else is there.
    pub fn may_begin(&mut self, missing: usize) -> bool {
        if missing == 0 {
            self.until = None;
            return true;
        }
        let now = Instant::now();
        let until = *self.until.get_or_insert(now + PATIENCE);
        let late = until <= now;
        if late {
            self.until = None;
            warn!(
                missing,
                "host names are not looked up in time; publishing without their instances"
            );
        }
        late
    }

    /// When to ask again; never if nothing waits.
    pub async fn due(&self) {
        match self.until {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_waits_for_names_that_are_known_and_not_for_ever_for_others() {
        let (mut hosts, _wanted) = Hosts::new();
        assert!(hosts.may_begin(0));
        assert!(!hosts.may_begin(2) && !hosts.may_begin(1));
        hosts.until = Some(Instant::now());
        assert!(hosts.may_begin(1), "it waited long enough");
        assert!(!hosts.may_begin(1) && hosts.may_begin(0));
    }

    #[test]
    fn names_are_told_when_they_change() {
        let (hosts, mut wanted) = Hosts::new();
        let names: OrdSet<Arc<str>> = [Arc::from("a")].into_iter().collect();
        hosts.want(names.clone());
        assert!(wanted.has_changed().unwrap());
        assert_eq!(*wanted.borrow_and_update(), names);
        hosts.want(names);
        assert!(!wanted.has_changed().unwrap());
    }
}
