//! How a stream stands, for those who look on from outside.
//!
//! It changes nothing, and refuses to judge: how long is too long is another's affair. What waits for its
//! ACK is owed by the client; what changed behind the cursor is owed to it.

use std::{sync::Arc, time::Instant};

use super::{Lane, Outstanding, Stream, Variant};
use crate::{
    resource::ResourceType,
    snapshot::{Cursor, ResourceSet, Snapshots},
    xds::status::{State, TypeStatus},
};

/// How many unregistered names of one client are shown.
const UNREGISTERED: usize = 20;

/// Why a client does not have what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lag {
    /// A response waits for its answer since then.
    Unanswered(Instant),
    /// Something that it wants changed behind this cursor, and no response tells of it yet.
    Unsent(Cursor),
}

impl<V: Variant> Stream<V> {
    /// How each subscribed type stands, for operators.
    pub fn status(&self) -> impl Iterator<Item = (ResourceType, TypeStatus)> {
        let lanes = ResourceType::ALL.into_iter().zip(&self.lanes);
        lanes.filter_map(|(kind, lane)| lane.as_ref().map(|lane| (kind, lane.status())))
    }

    /// How the client stands with the collections whose names begin so, if it follows any.
    pub fn state_of_collections(&self, prefix: &str) -> Option<State> {
        let lane = self.lanes[ResourceType::LbEndpoint as usize].as_ref()?;
        lane.variant.follows(prefix).then(|| lane.status().state)
    }

    /// The names that the client asks for and that nothing is registered under.
    pub fn unregistered(&self) -> impl Iterator<Item = &Arc<str>> {
        let lanes = self.lanes.iter().flatten();
        lanes.flat_map(|lane| lane.variant.unregistered())
    }

    /// The types in which the client does not have what there is.
    pub fn lags(&self, snapshots: &Snapshots) -> Vec<(ResourceType, Lag)> {
        let Some(client) = self.client.as_ref().filter(|_| snapshots.loaded) else {
            return Vec::new();
        };
        let view = snapshots.view(client.profile);
        let lanes = ResourceType::ALL.into_iter().zip(&self.lanes);
        let lags = lanes.filter_map(|(kind, lane)| {
            let lag = lane.as_ref()?.lag(view.set(kind))?;
            Some((kind, lag))
        });
        lags.collect()
    }
}

impl<V: Variant> Lane<V> {
    fn status(&self) -> TypeStatus {
        let state = match (&self.rejection, self.owed(), self.acked) {
            (Some(_), ..) => State::Error,
            (None, Some(_), _) => State::Stale,
            (None, None, Some(_)) => State::Synced,
            (None, None, None) => State::NotSent,
        };
        TypeStatus {
            state,
            version: self.acked.map(|version| version.to_string()),
            subscribed: self.variant.subscription().len(),
            unregistered: self
                .variant
                .unregistered()
                .take(UNREGISTERED)
                .map(ToString::to_string)
                .collect(),
            error: self.rejection.as_ref().map(|r| r.error.clone()),
            rejected_since: self.rejection.as_ref().map(|r| r.since),
            rejections: self.rejection.as_ref().map_or(0, |r| r.count),
        }
    }

    /// What the client has to answer. Some do not answer a response once they have unsubscribed from all
    /// that it is about.
    fn owed(&self) -> Option<&Outstanding> {
        let asks = self.variant.subscription().len() > 0;
        self.outstanding.as_ref().filter(|_| asks)
    }

    fn lag(&self, set: &ResourceSet) -> Option<Lag> {
        if let Some(outstanding) = self.owed() {
            return Some(Lag::Unanswered(outstanding.since));
        }
        let subscription = self.variant.subscription();
        let cursor = subscription.cursor.filter(|at| *at < set.latest())?;
        let mut due = subscription.changes(set, cursor);
        due.next().map(|_| Lag::Unsent(cursor))
    }
}
