//! Tells the log what the guards hold back, and not more of it than a person can read.
//!
//! It refuses to know why. Invariant: every hold begins with a warning and ends with a line, but for those of
//! more than [`LINES`] services that trip at once, which are counted.

use std::sync::Arc;

use tracing::{info, warn};

use crate::registry::guard::{Ending, Notice, Scope};

/// Services that are named of those that trip or end at once.
const LINES: usize = 3;

pub fn tell(notices: &[(Arc<str>, Notice)]) {
    let (mut told, mut more) = (0, 0);
    for (registry, notice) in notices {
        let service = scope(notice);
        told += usize::from(service.is_some());
        if service.is_some() && told > LINES {
            more += 1;
            continue;
        }
        one(registry, service, notice);
    }
    if more > 0 {
        warn!("and so with {more} more services; `meshkeeper holds` lists what is held");
    }
}

fn scope(notice: &Notice) -> Option<&Arc<str>> {
    let (Notice::Tripped { scope, .. } | Notice::Ended { scope, .. }) = notice;
    match scope {
        Scope::Registry => None,
        Scope::Service(name) => Some(name),
    }
}

fn one(registry: &str, service: Option<&Arc<str>>, notice: &Notice) {
    // Names are what others wrote.
    let of = match service {
        Some(name) => format!("service {}", name.escape_debug()),
        None => "the whole registry".to_owned(),
    };
    match notice {
        Notice::Tripped {
            peak,
            present,
            held,
            ..
        } => warn!(
            registry,
            of,
            were = peak,
            registered = present,
            held,
            "too many instances went at once: the rest is held, and stays served; `meshkeeper release` lets it go if it is meant to be gone"
        ),
        Notice::Ended { how, removed, .. } => {
            let why = match how {
                Ending::Returned => "as many are registered again as there were",
                Ending::Expired => "they did not return in time",
                Ending::Released => "an operator released them",
                Ending::Refused => "their addresses refuse connections",
            };
            info!(registry, of, removed, why, "no instances are held any more");
        }
    }
}
