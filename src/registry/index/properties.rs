//! The index against a naive model: random batches, then everything built anew from the znodes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::{prelude::*, sample::select};

use super::*;
use crate::{
    model::{Instance, Origin, Socket, Touched},
    registry::{FormatChoice, Layout, Shape},
};

const FORMAT: FormatChoice = FormatChoice::Auto;

/// Names that collide in case, and some that cannot be served.
const SERVICES: [&str; 6] = ["orders", "Orders", "ORDERS", "users", "a|b", "--"];
const ZNODES: [&str; 4] = ["i-1", "i-2", "i-3", "i-4"];
const PAYLOADS: [&str; 7] = [
    "10.0.0.7:80",
    "10.0.0.8:80",
    " 10.0.0.7:80 ",
    r#"{"host":"10.0.0.7","port":80,"weight":7}"#,
    r#"{"host":"10.0.0.7","port":80,"enabled":false}"#,
    "garbage",
    "",
];

#[derive(Clone, Copy, Debug)]
enum Step {
    PutService(&'static str),
    Write(&'static str, &'static str, &'static str),
    /// Deleted and created again between two reads.
    Recreate(&'static str, &'static str, &'static str),
    /// Told once more, as a resync does.
    Confirm(&'static str, &'static str),
    Delete(&'static str, &'static str),
    DeleteService(&'static str),
}

fn step() -> impl Strategy<Value = Step> {
    let (service, znode, data) = (
        select(&SERVICES[..]),
        select(&ZNODES[..]),
        select(&PAYLOADS[..]),
    );
    let place = (service.clone(), znode);
    let write = (place.clone(), data);
    prop_oneof![
        2 => service.clone().prop_map(Step::PutService),
        8 => write.clone().prop_map(|((s, n), d)| Step::Write(s, n, d)),
        2 => write.prop_map(|((s, n), d)| Step::Recreate(s, n, d)),
        2 => place.clone().prop_map(|(s, n)| Step::Confirm(s, n)),
        4 => place.prop_map(|(s, n)| Step::Delete(s, n)),
        1 => service.prop_map(Step::DeleteService),
    ]
}

/// A znode of the model, with the last good state of the same znode.
#[derive(Clone, Debug)]
struct Written {
    data: &'static str,
    stat: Stat,
    good: Option<(&'static str, Stat)>,
}

impl Written {
    fn new(data: &'static str, stat: Stat, past: Option<&Self>) -> Self {
        let now = decodes(data).then_some((data, stat));
        let past = past.filter(|p| p.stat.czxid == stat.czxid);
        let good = now.or_else(|| past.and_then(|p| p.good));
        Self { data, stat, good }
    }
}

fn decodes(data: &str) -> bool {
    let znode = Znode::new("", data.as_bytes(), Stat::default());
    FORMAT.decode(&znode).is_ok()
}

/// The tree as ZooKeeper would hold it.
#[derive(Debug, Default)]
struct Tree {
    zxid: i64,
    services: BTreeMap<&'static str, (Option<i64>, BTreeMap<&'static str, Written>)>,
}

impl Tree {
    /// Takes a step and tells of it, as the watcher would.
    fn take(&mut self, step: Step) -> Option<Event> {
        self.zxid += 1;
        let zxid = self.zxid;
        let stat = |czxid| Stat {
            czxid,
            mzxid: zxid,
            ..Stat::default()
        };
        match step {
            Step::PutService(service) => {
                let czxid = self
                    .services
                    .entry(service)
                    .or_default()
                    .0
                    .get_or_insert(zxid);
                Some(put(
                    service,
                    "",
                    Stat {
                        czxid: *czxid,
                        mzxid: *czxid,
                        ..Stat::default()
                    },
                ))
            }
            Step::Write(service, name, data) => {
                let znodes = &self.services.get(service).map(|(_, z)| z);
                let created = znodes
                    .and_then(|z| z.get(name))
                    .map_or(zxid, |w| w.stat.czxid);
                Some(self.write(service, name, data, stat(created)))
            }
            Step::Recreate(service, name, data) => {
                Some(self.write(service, name, data, stat(zxid)))
            }
            Step::Confirm(service, name) => {
                let written = self.services.get(service)?.1.get(name)?;
                Some(put(
                    &format!("{service}/{name}"),
                    written.data,
                    written.stat,
                ))
            }
            Step::Delete(service, name) => {
                self.services.get_mut(service)?.1.remove(name);
                Some(Event::Delete {
                    path: format!("{service}/{name}").into(),
                })
            }
            Step::DeleteService(service) => {
                self.services.remove(service);
                Some(Event::Delete {
                    path: service.into(),
                })
            }
        }
    }

    fn write(
        &mut self,
        service: &'static str,
        name: &'static str,
        data: &'static str,
        stat: Stat,
    ) -> Event {
        let znodes = &mut self.services.entry(service).or_default().1;
        let written = Written::new(data, stat, znodes.get(name));
        znodes.insert(name, written);
        put(&format!("{service}/{name}"), data, stat)
    }

    /// The services that have their host name, by a plain scan.
    fn holders(&self) -> Vec<&'static str> {
        let age = |name: &&'static str| (self.services[*name].0.unwrap_or(UNSEEN), *name);
        let rivals = |name: &'static str| {
            let all = self.services.keys().copied();
            all.filter(move |other| other.eq_ignore_ascii_case(name))
        };
        let names = self.services.keys().copied();
        names
            .filter(|name| !name.starts_with('-') && !name.contains('|'))
            .filter(|name| rivals(name).min_by_key(age) == Some(*name))
            .collect()
    }

    /// What each service serves: `address:port` to the znode's name, by a plain scan.
    fn serving(&self) -> BTreeMap<String, Vec<(String, String)>> {
        let holders = self.holders().into_iter();
        holders
            .map(|name| (name.to_owned(), self.serving_in(name)))
            .collect()
    }

    fn serving_in(&self, service: &str) -> Vec<(String, String)> {
        let mut newest: BTreeMap<String, (i64, &str)> = BTreeMap::new();
        for (name, written) in &self.services[service].1 {
            let Some((data, stat)) = written.good else {
                continue;
            };
            let port = if data.contains("10.0.0.8") {
                "10.0.0.8:80"
            } else {
                "10.0.0.7:80"
            };
            let claim = newest.entry(port.to_owned()).or_default();
            *claim = (stat.czxid, *name).max(*claim);
        }
        newest
            .into_iter()
            .map(|(port, (_, name))| (port, name.to_owned()))
            .collect()
    }

    /// The paths that have something to be told: bad data, an address held by another, a bad name.
    fn rejected(&self) -> Vec<String> {
        let serving = self.serving();
        let mut paths = Vec::new();
        for (service, (_, znodes)) in &self.services {
            let Some(serving) = serving.get(*service) else {
                paths.push(format!("/services/{service}"));
                continue;
            };
            let serves = |name: &str| serving.iter().any(|(_, n)| n == name);
            let out = znodes
                .iter()
                .filter(|(n, w)| !serves(n) || !decodes(w.data));
            paths.extend(out.map(|(n, _)| format!("/services/{service}/{n}")));
        }
        paths.sort();
        paths
    }

    /// The events that tell the whole tree, last good states first.
    fn story(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for (service, (czxid, znodes)) in &self.services {
            // Behind its instances, which must make no difference.
            for (name, written) in znodes.iter().rev() {
                let path = format!("{service}/{name}");
                events.extend(written.good.map(|(data, stat)| put(&path, data, stat)));
                events.push(put(&path, written.data, written.stat));
            }
            let stat = |czxid| Stat {
                czxid,
                mzxid: czxid,
                ..Stat::default()
            };
            events.push(put(service, "", stat(czxid.unwrap_or(UNSEEN))));
        }
        events
    }
}

fn put(path: &str, data: &'static str, stat: Stat) -> Event {
    Event::Put {
        path: path.into(),
        data: Bytes::from_static(data.as_bytes()),
        stat,
    }
}

fn index() -> Index {
    Index::new(Config {
        name: "main".to_owned(),
        root: "/services".to_owned(),
        layout: Layout::flat(),
        format: FORMAT,
        priority: 0,
        required: true,
        ttl: None,
        shape: Shape::default(),
    })
}

fn serving(view: &View) -> BTreeMap<String, Vec<(String, String)>> {
    let instance = |i: &Arc<Instance>| {
        let name = i.origin.znode.rsplit('/').next().unwrap_or_default();
        (format!("{}:{}", i.address, i.port), name.to_owned())
    };
    let services = view.services.iter();
    services
        .map(|(name, s)| (name.to_string(), s.instances.iter().map(instance).collect()))
        .collect()
}

/// The services as a client could see them: without origins.
fn visible(view: &View) -> BTreeMap<Arc<str>, Vec<Instance>> {
    let bare = |i: &Arc<Instance>| Instance {
        own_id: Some(i.id().into()),
        origin: Origin::default(),
        ..Instance::clone(i)
    };
    let services = view.services.iter();
    services
        .map(|(name, s)| (Arc::clone(name), s.instances.iter().map(bare).collect()))
        .collect()
}

fn differing(before: &View, after: &View) -> Changes {
    let (before, after) = (visible(before), visible(after));
    let names = before.keys().chain(after.keys());
    let differ = |name: &Arc<str>| match (before.get(name), after.get(name)) {
        (Some(before), Some(after)) => Touched::Some(differing_sockets(before, after)),
        _ => Touched::All,
    };
    names
        .filter(|n| before.get(*n) != after.get(*n))
        .map(|name| (name.clone(), differ(name)))
        .collect()
}

fn differing_sockets(before: &[Instance], after: &[Instance]) -> BTreeSet<Socket> {
    let lacks = |all: &[Instance], one: &Instance| !all.contains(one);
    let gone = before.iter().filter(|i| lacks(after, i));
    let new = after.iter().filter(|i| lacks(before, i));
    gone.chain(new).map(Instance::socket).collect()
}

proptest! {
    #[test]
    fn the_view_follows_the_tree_and_changes_are_exact(
        batches in prop::collection::vec(prop::collection::vec(step(), 0..8), 1..12),
    ) {
        let (mut tree, mut index) = (Tree::default(), index());
        for steps in batches {
            let before = index.view();
            let events = steps.into_iter().filter_map(|step| tree.take(step)).collect();
            let changes = index.apply(Batch { events, ..Batch::default() }, 0);
            let view = index.view();

            prop_assert_eq!(changes, differing(&before, &view));
            prop_assert_eq!(serving(&view), tree.serving());
            let rejected: Vec<String> = view.rejected.keys().cloned().collect();
            prop_assert_eq!(rejected, tree.rejected());
            let instances = view.services.values().map(|s| s.instances.len()).sum();
            let counts = Counts { services: view.services.len(), instances, rejected: view.rejected.len() };
            prop_assert_eq!(index.counts(), counts);
        }
        let mut anew = self::index();
        anew.apply(Batch { events: tree.story(), complete: true, ..Batch::default() }, 0);
        prop_assert_eq!(&anew.view().services, &index.view().services);
        prop_assert_eq!(&anew.view().rejected, &index.view().rejected);
    }
}
