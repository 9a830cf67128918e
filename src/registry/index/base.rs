//! A service's znode with what is registered below it.
//!
//! It refuses to know other services, host names and the view. Invariants: each roster holds exactly
//! what the good values of the entries make; a znode's last good value stands until the znode is
//! deleted, and while the process lives. A `Put` with another `czxid` is another znode under the same
//! name, which has no past.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::make::{Part, Registered};
use crate::{
    model::{Health, Instance, Socket, Weight},
    registry::{
        Rejected,
        reason::{Reason, quoted_path},
        registration::Factor,
        roster::Roster,
    },
};

#[derive(Debug)]
pub(super) struct Base {
    pub czxid: i64,
    /// The znode or something below it exists.
    pub there: bool,
    pub title: Title,
    /// Whether it may exist without instances.
    alone: bool,
    /// What stands between it and its instances.
    pub between: BTreeSet<Arc<str>>,
    pub entries: BTreeMap<Arc<str>, Entry>,
    pub own: Roster,
    /// Named ports, groups and versions: each a service of its own while it has instances.
    pub parts: BTreeMap<Arc<str>, Roster>,
    /// The znodes that hold factors for the weights of others.
    weighing: BTreeSet<Arc<str>>,
    /// How many providers of Dubbo's there are by part.
    dubbo: BTreeMap<Part, Providers>,
    /// Whether what is wrong with its znodes is shown.
    pub listed: bool,
}

/// What the service is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Title {
    Named(Arc<str>),
    /// Nothing below it is looked at.
    Refused(Reason),
    /// As the configuration wants it.
    Excluded,
}

/// A znode that registers.
#[derive(Debug)]
pub(super) struct Entry {
    pub czxid: i64,
    pub good: Good,
    /// What is wrong with the present data, or why a part of them is left out.
    pub bad: Option<Box<Rejected>>,
}

/// The last good value of a znode.
#[derive(Clone, Debug, Default)]
pub(super) enum Good {
    #[default]
    None,
    /// One instance of the service itself, whatever happens around it.
    One(Arc<Instance>),
    /// What has to be looked at again: several, host names, weights that change.
    Many(Box<Many>),
    /// For the weights of others.
    Factors(Vec<Factor>),
}

/// Providers of Dubbo's that can serve, by whether they have a weight.
#[derive(Debug, Default, PartialEq, Eq)]
struct Providers {
    weighted: usize,
    unweighted: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Many {
    pub registered: Registered,
    pub made: Vec<(Part, Arc<Instance>)>,
    pub due: Option<i64>,
    pub trouble: Option<Reason>,
    /// A host name whose first look-up is not finished.
    pub waits: Option<Arc<str>>,
}

impl Good {
    /// The part and the registered weight of each of Dubbo's providers that can serve.
    fn providers(&self) -> Vec<(Part, Weight)> {
        let serves = |health: &Health| matches!(health, Health::Healthy | Health::Degraded);
        match self {
            Self::One(instance)
                if instance.origin.format == "dubbo" && serves(&instance.health) =>
            {
                vec![(None, instance.weight)]
            }
            Self::Many(many) if many.registered.is_dubbo() => {
                let all = many.registered.instances.iter();
                let serving = all.filter(|decoded| serves(&decoded.health));
                serving
                    .map(|decoded| (decoded.part.as_deref().map(Arc::from), decoded.weight))
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    pub fn instances(&self) -> impl Iterator<Item = (Option<&Arc<str>>, &Arc<Instance>)> {
        let (one, many) = match self {
            Self::One(instance) => (Some(instance), None),
            Self::Many(many) => (None, Some(&many.made)),
            Self::None | Self::Factors(_) => (None, None),
        };
        let many = many.into_iter().flatten().map(|(p, i)| (p.as_ref(), i));
        one.map(|instance| (None, instance)).into_iter().chain(many)
    }
}

/// What a change touched of a service's znode.
#[derive(Debug, Default)]
pub(super) struct Touches {
    pub znodes: BTreeSet<Arc<str>>,
    /// By part and by address and port, one that is or was registered there.
    pub parts: BTreeMap<Part, BTreeMap<Socket, Arc<Instance>>>,
}

impl Touches {
    fn socket(&mut self, part: Option<&Arc<str>>, instance: &Arc<Instance>) {
        let touched = match self.parts.get_mut(&part.cloned()) {
            Some(touched) => touched,
            None => self.parts.entry(part.cloned()).or_default(),
        };
        touched.insert(instance.socket(), Arc::clone(instance));
    }
}

impl Base {
    pub fn new(czxid: i64, title: Title, alone: bool) -> Self {
        Self {
            czxid,
            there: true,
            title,
            alone,
            between: BTreeSet::new(),
            entries: BTreeMap::new(),
            own: Roster::default(),
            parts: BTreeMap::new(),
            weighing: BTreeSet::new(),
            dubbo: BTreeMap::new(),
            listed: false,
        }
    }

    pub fn is_named(&self) -> bool {
        matches!(self.title, Title::Named(_))
    }

    pub fn roster(&self, part: Option<&Arc<str>>) -> Option<&Roster> {
        match part {
            None => Some(&self.own),
            Some(part) => self.parts.get(part),
        }
    }

    pub fn roster_mut(&mut self, part: Option<&Arc<str>>) -> &mut Roster {
        match part {
            None => &mut self.own,
            Some(part) => self.parts.entry(Arc::clone(part)).or_default(),
        }
    }

    /// Whether weights are multiplied here.
    pub fn weighs(&self) -> bool {
        !self.weighing.is_empty()
    }

    /// Whether all of Dubbo's providers weigh 0: then Dubbo sends requests to all of them alike.
    pub fn is_even(&self, part: Option<&str>) -> bool {
        let of = |(key, _): &(&Part, &Providers)| key.as_deref() == part;
        let providers = self.dubbo.iter().find(of);
        providers.is_some_and(|(_, providers)| providers.weighted == 0 && providers.unweighted > 0)
    }

    /// The parts of which all providers weigh 0.
    pub fn even_parts(&self) -> BTreeSet<Part> {
        let even = self
            .dubbo
            .keys()
            .filter(|part| self.is_even(part.as_deref()));
        even.cloned().collect()
    }

    /// Counts the providers of a znode that comes, or goes.
    fn count(&mut self, good: &Good, comes: bool) {
        for (part, weight) in good.providers() {
            let providers = self.dubbo.entry(part.clone()).or_default();
            let count = match weight {
                Weight::DRAIN => &mut providers.unweighted,
                _ => &mut providers.weighted,
            };
            *count = if comes {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
            if *providers == Providers::default() {
                self.dubbo.remove(&part);
            }
        }
    }

    pub fn factors(&self) -> Vec<&Factor> {
        let entries = self.weighing.iter().filter_map(|z| self.entries.get(z));
        let factors = entries.flat_map(|entry| match &entry.good {
            Good::Factors(factors) => &factors[..],
            _ => &[],
        });
        factors.collect()
    }

    /// Whether there is such a service. Consumers leave znodes too, and others have siblings that are
    /// none, so one with a level between it and its instances exists by these alone.
    pub fn exists(&self, part: Option<&Arc<str>>) -> bool {
        let registered = self.roster(part).is_some_and(|roster| !roster.is_empty());
        let bare = part.is_none() && self.alone && self.between.is_empty();
        self.there && self.is_named() && (bare || registered)
    }

    /// A znode of those below it now is `entry`; what it was before.
    pub fn put(&mut self, znode: &Arc<str>, entry: Entry, touches: &mut Touches) -> Option<Entry> {
        let before = self.take(znode, touches);
        for (part, instance) in entry.good.instances() {
            let older = self.roster_mut(part).claim(instance);
            touches.znodes.extend(older);
            touches.socket(part, instance);
        }
        if let Good::Factors(_) = entry.good {
            self.weighing.insert(Arc::clone(znode));
        }
        self.count(&entry.good, true);
        touches.znodes.insert(Arc::clone(znode));
        self.entries.insert(Arc::clone(znode), entry);
        before
    }

    /// A znode of those below it is gone; what it was.
    pub fn take(&mut self, znode: &str, touches: &mut Touches) -> Option<Entry> {
        let (znode, before) = self.entries.remove_entry(znode)?;
        for (part, instance) in before.good.instances() {
            let older = self.roster_mut(part).release(instance);
            touches.znodes.extend(older);
            touches.socket(part, instance);
        }
        self.weighing.remove(&znode);
        self.count(&before.good, false);
        touches.znodes.insert(znode);
        Some(before)
    }

    /// The host name of the znode whose first look-up is not finished.
    pub fn waits(&self, znode: &str) -> Option<&Arc<str>> {
        match &self.entries.get(znode)?.good {
            Good::Many(many) => many.waits.as_ref(),
            _ => None,
        }
    }

    /// Why the znode is left out, or what of it is.
    pub fn rejection(&self, znode: &str) -> Option<Rejected> {
        let entry = self.entries.get(znode)?;
        let mut good = entry.good.instances();
        let newer = good.find_map(|(part, i)| Some((i, self.roster(part)?.newer(i)?)));
        let one = entry.good.instances().next().map(|(_, instance)| instance);
        match (&entry.bad, one, newer) {
            (None, _, newer) => {
                let superseded = newer.map(|(good, newer)| superseded(good, newer));
                superseded.or_else(|| entry.good.trouble())
            }
            (Some(bad), None, _) => Some(Rejected::clone(bad)),
            (Some(bad), Some(good), newer) => Some(stale(bad, good, newer.map(|(_, n)| &**n))),
        }
    }
}

impl Good {
    fn trouble(&self) -> Option<Rejected> {
        let Self::Many(many) = self else {
            return None;
        };
        Some(Rejected {
            format: many.registered.format,
            reason: many.trouble.clone()?.into_string(),
        })
    }
}

fn superseded(older: &Instance, newer: &Instance) -> Rejected {
    let path = quoted_path(&newer.origin.path());
    let socket = std::net::SocketAddr::new(older.address, older.port);
    let reason = Reason::new(format!(
        "`{socket}` is registered by {path} too, which is newer"
    ));
    Rejected {
        format: older.origin.format,
        reason: reason.into_string(),
    }
}

fn stale(bad: &Rejected, good: &Instance, newer: Option<&Instance>) -> Rejected {
    let mzxid = good.origin.mzxid;
    let standing = match newer {
        None => format!(
            "the last good registration (mzxid {mzxid}) is still served (over a restart too, with a state on disk)"
        ),
        Some(newer) => {
            let path = quoted_path(&newer.origin.path());
            format!("the last good one (mzxid {mzxid}) gave way to {path}")
        }
    };
    Rejected {
        format: bad.format,
        reason: Reason::new(&bad.reason).and(&standing).into_string(),
    }
}
