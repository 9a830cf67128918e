//! Makes instances of what a znode registers: with the addresses of its host names, the weight that
//! it has by now, and what the configuration makes of it.
//!
//! Pure; time comes in. It refuses to know other znodes but for the factors that some of them hold for
//! the weights of others. Invariant: the same registration at the same time makes the same instances,
//! on every replica; where time matters, it says when to ask again.

use std::{net::IpAddr, sync::Arc, time::Duration};

use super::{
    base::{Base, Good, Many, Title},
    names::Names,
};
use crate::{
    model::{Health, Instance, Origin, Source, Weight},
    registry::{
        Stat, name,
        reason::{Reason, quoted},
        registration::{Decoded, Factor, Host, Select, WarmUp},
        shape::Shape,
    },
};

/// A weight ramps up in so many steps: each is an update for every client.
const STEPS: i64 = 10;

/// Steps are taken together that are due within so many milliseconds.
const TOGETHER: i64 = 1_000;

/// What of a service an instance is; `None` for the service itself.
pub(super) type Part = Option<Arc<str>>;

/// What all instances of a registry are made with.
#[derive(Debug)]
pub(super) struct Maker {
    pub source: Arc<Source>,
    pub shape: Shape,
    pub priority: u8,
    /// What was not written for that long is not served, if no session holds it.
    pub ttl: Option<Duration>,
    /// Whether the mirror is known to be what ZooKeeper holds; while it may be old nothing lapses.
    pub fresh: bool,
}

/// A znode with what it registers.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    pub znode: Arc<str>,
    pub format: &'static str,
    pub stat: Stat,
    pub instances: Vec<Decoded>,
    /// Since when its time to live runs, by this machine's clock; `None` before the mirror was seen to
    /// be what ZooKeeper holds.
    pub alive: Option<i64>,
    /// Its time to live was over, and nothing was written since.
    pub lapsed: bool,
    /// What the wall clock showed beyond the steady one when the znode was first read: times that others wrote
    /// are compared by that, so that setting the wall clock later changes no weight.
    pub epoch: i64,
}

impl Registered {
    /// Whether Dubbo wrote it, at either level.
    pub fn is_dubbo(&self) -> bool {
        let revision = |decoded: &Decoded| decoded.metadata.contains_key("dubbo.metadata.revision");
        self.format == "dubbo" || self.instances.iter().any(revision)
    }

    /// It arrives after `past`: if it was written since, it lives from `now` on. Whose clock wrote it
    /// does not matter.
    pub fn arrives(&mut self, past: Option<&Good>, now: i64) {
        if let Some(Good::Many(many)) = past {
            self.epoch = many.registered.epoch;
        }
        match past {
            Some(Good::Many(many)) if many.registered.stat.mzxid == self.stat.mzxid => {
                self.alive = many.registered.alive;
                self.lapsed = many.registered.lapsed;
            }
            _ => self.alive = Some(now),
        }
    }
}

/// What became of it.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub instances: Vec<(Part, Instance)>,
    /// When it will be something else.
    pub due: Option<i64>,
    /// Its time to live is over.
    pub lapsed: bool,
    /// Why some of it is left out.
    pub trouble: Option<Reason>,
    /// A host name whose first look-up is not finished.
    pub waits: Option<Arc<str>>,
}

impl Maker {
    pub fn make(
        &self,
        service: &str,
        registered: &Registered,
        base: &Base,
        names: &Names,
        now: i64,
    ) -> Made {
        let factors = base.factors();
        let mut made = Made::default();
        let expiry = self.expiry(registered);
        made.due = expiry.filter(|at| *at > now);
        made.lapsed = registered.lapsed || expiry.is_some_and(|at| at <= now);
        for decoded in &registered.instances {
            if let Some(part) = &decoded.part
                && let Err(reason) = name::host(&format!("{service}:{part}"))
            {
                made.trouble = Some(reason);
                continue;
            }
            let addresses = match addresses(&decoded.host, names) {
                Addresses::Known(addresses) => addresses,
                Addresses::Failed(reason) => {
                    made.trouble = Some(reason);
                    continue;
                }
                Addresses::Pending(name) => {
                    made.waits = Some(Arc::clone(name));
                    continue;
                }
            };
            let (weight, due) = match decoded.weight {
                Weight::DRAIN if base.is_even(decoded.part.as_deref()) => (Weight::default(), None),
                _ => weight(decoded, registered, &factors, now),
            };
            made.due = made.due.into_iter().chain(due).min();
            for address in addresses {
                let mut instance = self.instance(registered, decoded.clone(), address);
                instance.weight = weight;
                if made.lapsed {
                    instance.health = Health::lapsed();
                }
                let part: Part = decoded.part.as_deref().map(Arc::from);
                let same =
                    |(p, i): &(Part, Instance)| *p == part && i.socket() == instance.socket();
                if !made.instances.iter().any(same) {
                    made.instances.push((part, instance));
                }
            }
        }
        made
    }

    /// What was decoded, as it stands.
    pub fn instance(&self, registered: &Registered, decoded: Decoded, address: IpAddr) -> Instance {
        let left_out = self.shape.leaves_out(address, &decoded);
        let left_out = left_out.map(|why| Health::Disabled(why.into()));
        Instance {
            own_id: decoded.id.map(String::into_boxed_str),
            address,
            port: decoded.port,
            weight: decoded.weight,
            zone: decoded.zone.map(Arc::from),
            health: left_out.unwrap_or(decoded.health),
            priority: self.priority,
            metadata: decoded.metadata.into(),
            origin: Origin {
                source: Arc::clone(&self.source),
                znode: Arc::clone(&registered.znode),
                format: registered.format,
                czxid: registered.stat.czxid,
                mzxid: registered.stat.mzxid,
                session: registered.stat.session().unwrap_or_default(),
            },
        }
    }

    /// Whether a registration may lapse: where a session holds the znode, that says how long it lives.
    fn lapses(&self, registered: &Registered) -> bool {
        self.ttl.is_some() && registered.stat.session().is_none()
    }

    /// When a znode counts as abandoned. Nobody could write while ZooKeeper was away: then nothing expires.
    fn expiry(&self, registered: &Registered) -> Option<i64> {
        let may = self.fresh && !registered.lapsed && self.lapses(registered);
        let ttl = self.ttl.filter(|_| may)?;
        let ttl = i64::try_from(ttl.as_millis()).ok()?;
        Some(registered.alive?.saturating_add(ttl))
    }
}

/// What is known of the addresses of a host.
enum Addresses<'h> {
    Known(Vec<IpAddr>),
    Failed(Reason),
    /// The name's first look-up is not finished.
    Pending(&'h Arc<str>),
}

fn addresses<'h>(host: &'h Host, names: &Names) -> Addresses<'h> {
    match host {
        Host::Ip(address) => Addresses::Known(vec![*address]),
        Host::Name(name) => match names.addresses(name) {
            Some(Ok(addresses)) => Addresses::Known(addresses.clone()),
            Some(Err(why)) => Addresses::Failed(Reason::new(format!(
                "host name {} cannot be resolved: {why}",
                quoted(name)
            ))),
            None => Addresses::Pending(name),
        },
    }
}

/// The weight by now, and when it will be another.
fn weight(
    decoded: &Decoded,
    registered: &Registered,
    factors: &[&Factor],
    now: i64,
) -> (Weight, Option<i64>) {
    let (weight, due) = match decoded.warm_up {
        Some(warm_up) if decoded.weight != Weight::DRAIN => {
            let since = warm_up.since.saturating_sub(registered.epoch);
            warmed(decoded.weight, WarmUp { since, ..warm_up }, now)
        }
        _ => (decoded.weight, None),
    };
    let fitting = factors
        .iter()
        .filter(|factor| fits(factor, decoded, registered));
    let factor: f64 = fitting.map(|factor| factor.weight).product();
    let scaled = f64::from(weight.get()) * factor;
    let most = f64::from(Weight::MAX.get());
    // Rounded and within the bounds of a weight, so that the cast is exact.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let scaled = Weight::new(scaled.round().clamp(0.0, most) as u32);
    (scaled.unwrap_or(weight), due)
}

fn warmed(weight: Weight, warm_up: WarmUp, now: i64) -> (Weight, Option<i64>) {
    let lasts = i64::from(warm_up.lasts.max(1));
    // In whole seconds of the clock, so that a fleet that begins anew is one update each second.
    let elapsed = (now - now.rem_euclid(TOGETHER)).saturating_sub(warm_up.since);
    let step = (elapsed.max(0).saturating_mul(STEPS) / lasts).min(STEPS);
    // Who drains is not warmed up.
    if step == STEPS || weight == Weight::DRAIN {
        return (weight, None);
    }
    let warm = i64::from(weight.get()) * step / STEPS;
    let warm = u32::try_from(warm.max(1)).ok().and_then(Weight::new);
    // The first second of the next step.
    let next = ((step + 1) * lasts + STEPS - 1) / STEPS;
    let next = warm_up.since.saturating_add(next);
    let next = next.saturating_add((-next).rem_euclid(TOGETHER));
    (warm.unwrap_or(weight), Some(next))
}

fn fits(factor: &Factor, decoded: &Decoded, registered: &Registered) -> bool {
    match &factor.select {
        Select::Socket { host, port } => *host == decoded.host && *port == decoded.port,
        Select::Member(name) => registered.znode.rsplit('/').next() == Some(name),
        Select::Shard(shard) => {
            let own = decoded.metadata.get("shard").and_then(|s| s.parse().ok());
            own == Some(*shard)
        }
    }
}

/// What becomes of a registration. What is as it was before is the same value.
pub(super) fn made(
    maker: &Maker,
    names: &Names,
    base: &Base,
    mut registered: Registered,
    past: Option<&Good>,
    now: i64,
) -> Good {
    let past: Vec<_> = past.into_iter().flat_map(Good::instances).collect();
    if !maker.lapses(&registered)
        && !base.weighs()
        && let Some((decoded, address)) = lone(&mut registered)
    {
        let new = maker.instance(&registered, decoded, address);
        let kept = past.iter().find(|(_, past)| ***past == new);
        let kept = kept.map(|(_, past)| Arc::clone(past));
        return Good::One(kept.unwrap_or_else(|| base.own.shared(new)));
    }
    let Title::Named(service) = &base.title else {
        return Good::None;
    };
    let made = maker.make(service, &registered, base, names, now);
    registered.lapsed = made.lapsed;
    let instances = made.instances.into_iter().map(|(part, new)| {
        let kept = past
            .iter()
            .find(|(p, past)| *p == part.as_ref() && ***past == new);
        let instance = match (kept, base.roster(part.as_ref())) {
            (Some((_, kept)), _) => Arc::clone(kept),
            (None, Some(roster)) => roster.shared(new),
            (None, None) => Arc::new(new),
        };
        let known = part
            .as_ref()
            .and_then(|part| base.parts.get_key_value(part));
        (known.map(|(part, _)| Arc::clone(part)).or(part), instance)
    });
    Good::Many(Box::new(Many {
        made: instances.collect(),
        registered,
        due: made.due,
        trouble: made.trouble,
        waits: made.waits,
    }))
}

/// Takes out the instance that is all there is and all there will be of a registration, if it is one.
fn lone(registered: &mut Registered) -> Option<(Decoded, std::net::IpAddr)> {
    match &registered.instances[..] {
        [
            Decoded {
                part: None,
                host: Host::Ip(address),
                warm_up: None,
                weight,
                ..
            },
        ] if *weight != Weight::DRAIN || !registered.is_dubbo() => {
            let address = *address;
            let decoded = registered.instances.pop()?;
            Some((decoded, address))
        }
        _ => None,
    }
}

/// What an instance was made of, for one that is registered by its own IP alone.
pub(super) fn unmade(instance: &Instance) -> Registered {
    let entry = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let decoded = Decoded {
        part: None,
        id: instance.own_id.as_deref().map(str::to_owned),
        host: Host::Ip(instance.address),
        port: instance.port,
        weight: instance.weight,
        warm_up: None,
        zone: instance.zone.as_deref().map(str::to_owned),
        health: instance.health.clone(),
        metadata: instance.metadata.iter().map(entry).collect(),
    };
    Registered {
        znode: Arc::clone(&instance.origin.znode),
        format: instance.origin.format,
        stat: Stat {
            czxid: instance.origin.czxid,
            mzxid: instance.origin.mzxid,
            ephemeral_owner: instance.origin.session,
            ..Stat::default()
        },
        instances: vec![decoded],
        alive: None,
        lapsed: false,
        epoch: 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_weight_ramps_up_in_steps_and_says_when_the_next_is_due() {
        let warm_up = WarmUp {
            since: 1_000,
            lasts: 600_000,
        };
        let weight = Weight::default();
        let at = |now| {
            let (weight, due) = warmed(weight, warm_up, now);
            (weight.get(), due)
        };
        assert_eq!(at(0), (1, Some(61_000)));
        assert_eq!(at(1_000), (1, Some(61_000)));
        assert_eq!(at(60_999), (1, Some(61_000)));
        assert_eq!(at(61_000), (10, Some(121_000)));
        assert_eq!(at(600_999), (90, Some(601_000)));
        assert_eq!(at(601_000), (100, None));
    }

    proptest! {
        #[test]
        fn following_the_due_times_ends_at_the_full_weight_in_ten_steps(
            weight in 1..=Weight::MAX.get(),
            since in any::<i32>(),
            lasts in 0..u32::MAX,
        ) {
            let (since, weight) = (i64::from(since), Weight::new(weight).unwrap());
            let warm_up = WarmUp { since, lasts };
            let (mut now, mut last, mut steps) = (since, Weight::DRAIN, 0);
            loop {
                let (warm, due) = warmed(weight, warm_up, now);
                prop_assert!(warm >= last && warm <= weight && warm.get() > 0);
                last = warm;
                let Some(due) = due else { break };
                prop_assert!(due > now);
                now = due;
                steps += 1;
            }
            prop_assert_eq!(last, weight);
            prop_assert!(steps <= STEPS);
        }
    }
}
