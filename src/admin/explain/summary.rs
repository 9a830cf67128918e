//! The sentence that an explanation begins with.
//!
//! It counts instances by what they are (registered, held, restored) and by what clients do with them. A
//! single instance is described in full.

use std::fmt::Write;

use super::{EntryView, Explanation, Moment, Registered};
use crate::registry::{Place, journal::Subject};

pub(super) fn of(found: &Explanation<'_>, moment: &Moment<'_>, subject: &Subject<'_>) -> String {
    let mut text = String::new();
    if !moment.status.is_ready() {
        text.push_str("nothing is served yet; ");
    }
    match &found.instances[..] {
        [] => text.push_str(&absent(found, moment, subject)),
        [one] => text.push_str(&single(one, moment)),
        all => text.push_str(&several(all)),
    }
    let (mut acked, mut followers) = (0, 0);
    for service in &found.services {
        acked += service.clients.acked;
        followers += service.clients.acked + service.clients.waiting + service.clients.rejected;
    }
    if !found.services.is_empty() {
        let _ = write!(
            text,
            "; {acked} of {followers} clients that follow have acknowledged all"
        );
    }
    if !found.rejected.is_empty() {
        let _ = write!(text, "; {} rejected", found.rejected.len());
    }
    if !found.waiting.is_empty() {
        let waiting = found.waiting.len();
        let _ = write!(text, "; {waiting} waiting for a host name to be looked up");
    }
    // What happened to the whole registry stands in the journal below.
    let own = |entry: &&EntryView<'_>| entry.service.is_some() || entry.path.is_some();
    if let Some(last) = found.journal.iter().find(own) {
        let _ = write!(text, "; last {} at {}: {}", last.what, last.at, last.why);
    }
    text
}

fn absent(found: &Explanation<'_>, moment: &Moment<'_>, subject: &Subject<'_>) -> String {
    let registries = &moment.picture.registries;
    if let Subject::Znode { path, .. } = subject {
        let places = registries.iter().filter_map(|of| {
            let below = of.config.below(path)?;
            Some((of, of.config.layout.place(below)))
        });
        let places: Vec<_> = places.collect();
        if let Some((of, _)) = places.iter().find(|(_, place)| *place == Place::Root) {
            let services = of.view.services.len();
            return format!(
                "the root of the registry {} with {services} services",
                of.name
            );
        }
        if places.iter().all(|(_, place)| *place == Place::Elsewhere) {
            let roots = registries.iter().map(|of| {
                format!(
                    "{} with layout {} ({})",
                    of.config.root, of.config.layout, of.name
                )
            });
            let roots: Vec<_> = roots.collect();
            return format!(
                "no registry reads this znode; they read {}",
                roots.join(", ")
            );
        }
    }
    let one_znode = !matches!(subject, Subject::Services(_)) && found.services.is_empty();
    match &found.rejected[..] {
        [rejected] if one_znode => return format!("not served: {}", rejected.reason),
        [_, ..] if one_znode => return "not served".to_owned(),
        _ => {}
    }
    if found.services.is_empty() {
        "not registered".to_owned()
    } else {
        "the service exists and has no instance".to_owned()
    }
}

fn single(one: &Registered<'_>, moment: &Moment<'_>) -> String {
    let state = match (one.instance.state, &one.held_since) {
        ("held", Some(since)) => {
            format!("not registered since {since}; held because too many went at once")
        }
        ("restored", _) => "restored from disk, not yet compared with ZooKeeper".to_owned(),
        (state, _) => state.to_owned(),
    };
    match one.served {
        "yes" if state == "registered" => "registered and served".to_owned(),
        "yes" => format!("{state}, and served"),
        "draining" => format!("{state}, and draining: its weight is 0, so it gets no new requests"),
        "unhealthy" => format!("{state}, and unhealthy: it gets no requests"),
        _ => format!("{state}, and not served: {}", why_not(one, moment)),
    }
}

fn why_not(one: &Registered<'_>, moment: &Moment<'_>) -> String {
    match one.instance.health.as_str() {
        health if health.starts_with("disabled") => health.to_owned(),
        _ if !moment.status.is_ready() => "the server is not ready".to_owned(),
        _ => {
            let conflict = moment.picture.conflicts.get(one.service);
            let why = conflict.map(|conflict| conflict.reason.clone());
            why.unwrap_or_else(|| {
                "another registration of the same address and port counts".to_owned()
            })
        }
    }
}

fn several(all: &[Registered<'_>]) -> String {
    let count = |is: &dyn Fn(&Registered<'_>) -> bool| all.iter().filter(|one| is(one)).count();
    let states = ["registered", "held", "lingering", "restored"];
    let states = states.map(|state| (state, count(&|one| one.instance.state == state)));
    let served = [
        ("served", "yes"),
        ("draining", "draining"),
        ("unhealthy", "unhealthy"),
        ("not served", "no"),
    ];
    let served = served.map(|(name, value)| (name, count(&|one| one.served == value)));
    format!("{}; {}", listed(&states), listed(&served))
}

/// `6 registered, 14 held`
fn listed(counts: &[(&str, usize)]) -> String {
    let there = counts.iter().filter(|(_, count)| *count > 0);
    let texts: Vec<_> = there
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    texts.join(", ")
}
