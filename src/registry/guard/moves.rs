//! What a batch did: who went, who came, by service.
//!
//! It refuses to know what follows from that. It compares two states of the mirror, which share what did not
//! change, so that it costs about what is another. Invariant: an instance is lost only if it took requests and
//! its address and port are registered no more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use imbl::ordmap::DiffItem;

use super::Services;
use crate::model::{Instance, Instances, Service, Socket};

/// What a batch did to one service.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Where anything is another, also only its origin.
    pub sockets: BTreeSet<Socket>,
    pub lost: Vec<Arc<Instance>>,
    pub gained: usize,
    /// How many more take requests than before though they were registered all along.
    pub turned: i64,
}

impl Moves {
    pub fn net(&self) -> i64 {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        count(self.gained) - count(self.lost.len())
    }
}

/// What became another between two states of the mirror, by service.
pub(super) fn moves(before: &Services, after: &Services) -> BTreeMap<Arc<str>, Moves> {
    before.diff(after).map(moved).collect()
}

#[allow(clippy::needless_pass_by_value)]
fn moved(item: DiffItem<'_, '_, Arc<str>, Arc<Service>>) -> (Arc<str>, Moves) {
    let none = Instances::default();
    let (name, moves) = match item {
        DiffItem::Add(name, service) => (name, between(&none, &service.instances)),
        DiffItem::Remove(name, service) => (name, between(&service.instances, &none)),
        DiffItem::Update {
            old: (_, old),
            new: (name, new),
        } => (name, between(&old.instances, &new.instances)),
    };
    (Arc::clone(name), moves)
}

fn between(before: &Instances, after: &Instances) -> Moves {
    let mut moves = Moves {
        sockets: before.differences(after),
        ..Moves::default()
    };
    for socket in &moves.sockets {
        let (was, is) = (before.get(*socket), after.get(*socket));
        let took = was.is_some_and(|i| i.takes_requests());
        let takes = is.is_some_and(|i| i.takes_requests());
        match (was, is) {
            (Some(was), None) if took => moves.lost.push(Arc::clone(was)),
            (None, Some(_)) => moves.gained += usize::from(takes),
            (Some(_), Some(_)) => moves.turned += i64::from(takes) - i64::from(took),
            _ => {}
        }
    }
    moves
}
