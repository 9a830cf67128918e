//! What operators should hear of a guard.
//!
//! Invariant: of a hold there is one notice when it has begun for good and one when it ends, and none of one that
//! was over before that; services that lose something while the whole registry is held have none of their own.

use std::sync::Arc;

/// Something that operators should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A loss was too great.
    Tripped {
        scope: Scope,
        /// The greatest number of instances within the window.
        peak: usize,
        /// How many are still registered.
        present: usize,
        /// How many of the others are held from now on.
        held: usize,
    },
    /// Nothing of it is held any more.
    Ended {
        scope: Scope,
        how: Ending,
        /// How many instances were removed by this end.
        removed: usize,
    },
}

impl Notice {
    pub fn scope(&self) -> &Scope {
        match self {
            Self::Tripped { scope, .. } | Self::Ended { scope, .. } => scope,
        }
    }
}

/// The whole registry, or one service of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Registry,
    Service(Arc<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As many are registered as there were.
    Returned,
    Expired,
    Released,
    /// Nothing listens at their addresses: they refuse connections.
    Refused,
}
