//! The last good state on disk: what a registry held, so that a restart without ZooKeeper serves it.
//!
//! ```text
//! Event ──▶ Recorder ──Picture──▶ Writer ──▶ DIRECTORY/REGISTRY.state ──read──▶ Restored: events to replay
//! ```
//!
//! Kept are the znodes as they were told, not what was made of them, with the last good data of one whose present
//! data are bad; what host names resolved to, since nothing can be served of a name that is not looked up yet; and
//! what the guard holds or may still bring back, as it was served: the names of its znodes may belong to others by
//! then. Files are small enough to be written as a whole.
//!
//! Invariants: whenever the process is killed, the file is the old or the new one; a file that is not exactly
//! what was written, of another version or of another registry is never used, and kept aside for a look.

pub mod clock;
mod codec;
pub mod file;
#[cfg(test)]
mod properties;
mod recorder;
pub mod writer;

use std::{path::PathBuf, sync::Arc};

use crate::registry::{
    Addresses, Batch, Stat,
    guard::{Gone, Resumed, Time, Trip},
};

pub use self::{
    clock::Stamp,
    file::{Error, read},
    recorder::{Kept, Noted, Picture, Recorder},
    writer::{Metrics, Writer},
};

/// Where states are kept, if they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub directory: Option<PathBuf>,
}

/// Which tree a state is of; a state of another one is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The registry's name, which is also that of its file.
    pub name: String,
    /// Hosts may come and go, as long as one stays.
    pub connect: String,
    pub root: String,
    /// What data were taken for, and so which znodes were read.
    pub format: String,
}

impl Identity {
    /// Whether a state of `other` is one of this.
    pub fn accepts(&self, other: &Self) -> bool {
        let (hosts, chroot) = ensemble(&self.connect);
        let (others, other_chroot) = ensemble(&other.connect);
        let shared = hosts
            .split(',')
            .any(|host| others.split(',').any(|other| other == host));
        let same = |part: fn(&Self) -> &String| part(self) == part(other);
        shared
            && chroot == other_chroot
            && same(|i| &i.name)
            && same(|i| &i.root)
            && same(|i| &i.format)
    }
}

/// Hosts and chroot.
fn ensemble(connect: &str) -> (&str, &str) {
    connect.split_once('/').unwrap_or((connect, ""))
}

/// A state that was read, with times by the clock of who reads it.
#[derive(Debug)]
pub struct Restored {
    /// For how many milliseconds nobody looked at the registry.
    pub away: Time,
    picture: Picture,
    pub held: Vec<Resumed>,
    pub trip: Option<Trip>,
    /// What went shortly before and was not held.
    pub recent: Vec<Gone>,
}

impl Restored {
    /// It was true at `then`, and it is `now`: its times become those of the present clock.
    fn since(mut self, then: &Stamp, now: &Stamp) -> Self {
        self.away = then.until(now);
        let by = (now.at.time)
            .saturating_sub(self.away)
            .saturating_sub(then.at.time);
        let shift = |time: &mut Time| *time = time.saturating_add(by);
        let held = self.held.iter_mut().flat_map(|resumed| &mut resumed.held);
        held.for_each(|(_, since)| shift(since));
        self.trip.iter_mut().for_each(|trip| shift(&mut trip.since));
        self.recent.iter_mut().for_each(|gone| shift(&mut gone.at));
        self
    }

    /// All znodes; a bad one behind its last good data.
    pub fn replay(&self) -> Batch {
        let all = self.picture.znodes.iter();
        Batch {
            events: all.flat_map(|(path, znode)| znode.events(path)).collect(),
            ..Batch::default()
        }
    }

    /// The znodes that were there, with what tells their versions.
    pub fn versions(&self) -> impl Iterator<Item = (Arc<str>, Stat)> {
        let all = self.picture.znodes.iter();
        all.map(|(path, znode)| (Arc::clone(path), znode.stat))
    }

    /// How many znodes were there.
    pub fn len(&self) -> usize {
        self.picture.znodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.picture.znodes.is_empty()
    }

    /// What host names resolved to.
    pub fn addresses(&self) -> Addresses {
        self.picture.kept.addresses.clone()
    }

    /// Goes on recording from here.
    pub fn recorder(&self) -> Recorder {
        Recorder::from(self.picture.clone())
    }
}
