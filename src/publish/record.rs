//! Records one registry's state as it is mirrored, for whoever writes it.
//!
//! Invariant: nothing is drawn before the registry was seen whole, or restored; a
//! picture is drawn where anything was told, is held that was not before, or went by another address.

use tokio::sync::watch;

use crate::{
    registry::{Addresses, Event, Guarded, guard::Holds},
    state::{Kept, Noted, Picture, Recorder},
};

#[derive(Debug)]
pub struct Record {
    recorder: Recorder,
    pictures: watch::Sender<Option<Picture>>,
    /// Something was told since the last picture.
    fresh: bool,
    /// What was held then.
    holds: Holds,
    /// What host names resolved to then.
    addresses: Addresses,
}

impl Record {
    pub fn new(recorder: Recorder, pictures: watch::Sender<Option<Picture>>) -> Self {
        Self {
            recorder,
            pictures,
            fresh: false,
            holds: Holds::default(),
            addresses: Addresses::new(),
        }
    }

    pub(super) fn note(&mut self, events: &[Event]) -> Noted {
        self.fresh = true;
        self.recorder.note(events)
    }

    pub(super) fn judge(&mut self, noted: Noted, registry: &Guarded) {
        self.recorder.judge(noted, |znode| registry.is_bad(znode));
    }

    pub(super) fn draw(&mut self, registry: &Guarded) {
        let holds = registry.holds();
        let addresses = registry.addresses();
        let same = holds.is_same(&self.holds) && addresses.ptr_eq(&self.addresses);
        if !registry.loaded() || (same && !self.fresh) {
            return;
        }
        self.fresh = false;
        self.holds = holds.clone();
        self.addresses = addresses.clone();
        let kept = Kept {
            holds: holds.clone(),
            recent: registry.recent(),
            addresses: addresses.clone(),
            unseen: registry.unseen(),
        };
        self.pictures
            .send_replace(Some(self.recorder.picture(kept)));
    }
}
