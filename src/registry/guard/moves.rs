//! What a batch did: which instances went and which came, by service.
//!
//! It compares two states of the mirror, which share what did not change, so that it costs about as much as what
//! changed. Invariant: an instance is lost only if it took requests and its registration is gone: its znode is no
//! longer there, or was not written within its time to live. What changes behind a znode that is still there (a
//! host name that resolves to fewer addresses, a weight, health) is no loss.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use imbl::ordmap::DiffItem;

use super::{Cause, Services};
use crate::model::{Instance, Instances, Service, Socket};

/// What a batch did to one service.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Where anything changed, even if only its origin.
    pub sockets: BTreeSet<Socket>,
    pub lost: Vec<Arc<Instance>>,
    /// How many of the lost were not written in time.
    pub lapsed: usize,
    pub gained: usize,
    /// How many more take requests than before though they were registered all along.
    pub turned: i64,
}

impl Moves {
    pub fn net(&self) -> i64 {
        signed(self.gained) - signed(self.lost.len())
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What differs between two states of the mirror, by service.
pub(super) fn moves(
    before: &Services,
    after: &Services,
    cause: Cause<'_>,
) -> BTreeMap<Arc<str>, Moves> {
    before.diff(after).map(|item| moved(&item, cause)).collect()
}

fn moved(item: &DiffItem<'_, '_, Arc<str>, Arc<Service>>, cause: Cause<'_>) -> (Arc<str>, Moves) {
    let none = Instances::default();
    let (name, moves) = match item {
        DiffItem::Add(name, service) => (name, between(&none, &service.instances, cause)),
        DiffItem::Remove(name, service) => (name, between(&service.instances, &none, cause)),
        DiffItem::Update {
            old: (_, old),
            new: (name, new),
        } => (name, between(&old.instances, &new.instances, cause)),
    };
    (Arc::clone(name), moves)
}

fn between(before: &Instances, after: &Instances, cause: Cause<'_>) -> Moves {
    let mut moves = Moves {
        sockets: before.differences(after),
        ..Moves::default()
    };
    for socket in &moves.sockets {
        let was = before.get(*socket).filter(|i| stands(i));
        let is = after.get(*socket);
        let took = was.filter(|i| i.takes_requests());
        let takes = is.is_some_and(|i| i.takes_requests());
        match (took, is) {
            (Some(_), None) if was.is_some_and(|was| (cause.stands)(was)) => moves.turned -= 1,
            (Some(took), None) => moves.lost.push(Arc::clone(took)),
            // A comparison finds what lapsed before it.
            (Some(took), Some(is)) if !stands(is) && !cause.whole => {
                moves.lost.push(Arc::clone(took));
                moves.lapsed += 1;
            }
            (_, Some(_)) if was.is_none() => moves.gained += usize::from(takes),
            (_, Some(_)) => moves.turned += i64::from(takes) - i64::from(took.is_some()),
            (None, None) => {}
        }
    }
    moves
}

/// Whether what is registered counts as there: it was written in time.
pub(super) fn stands(instance: &Instance) -> bool {
    !instance.health.is_lapsed()
}

/// What is registered at an address of a service, if it counts as there.
pub(super) fn standing<'s>(
    services: &'s Services,
    name: &str,
    socket: Socket,
) -> Option<&'s Arc<Instance>> {
    let instance = services.get(name)?.instances.get(socket)?;
    stands(instance).then_some(instance)
}
