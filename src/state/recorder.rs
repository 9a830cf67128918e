//! Keeps the znodes of a registry as they are told, for the next write.
//!
//! Whoever knows payloads says which znodes are bad as they stand. Cloning a [`Picture`]
//! costs nothing, so that it can be written while recording goes on. Invariant: replaying a picture gives what
//! the events gave, but for znodes that were bad from the start.

use std::sync::Arc;

use imbl::{OrdMap, Vector};

use crate::registry::{
    Addresses, Event, Moment, Stat,
    guard::{Gone, Holds},
};

type Znodes = OrdMap<Arc<str>, Arc<Znode>>;

/// A znode with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Znode {
    pub stat: Stat,
    pub data: Box<[u8]>,
    /// Its data are bad as they stand.
    pub bad: bool,
    /// The last data of the same znode that were not.
    pub good: Option<Box<(Stat, Box<[u8]>)>>,
}

impl Znode {
    pub fn events(&self, path: &Arc<str>) -> impl Iterator<Item = Event> {
        let put = |stat: Stat, data: &[u8]| Event::Put {
            path: Arc::clone(path),
            data: bytes::Bytes::copy_from_slice(data),
            stat,
        };
        let good = self.good.as_deref().map(|(stat, data)| put(*stat, data));
        good.into_iter().chain([put(self.stat, &self.data)])
    }
}

/// A registry's znodes at a moment.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub(super) znodes: Znodes,
    pub(super) kept: Kept,
}

/// What is kept beside the znodes.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    pub holds: Holds,
    /// What went shortly before and was not held.
    pub recent: Vector<Gone>,
    /// What host names resolved to.
    pub addresses: Addresses,
    /// Since when the registry may be another; `None` while it is watched.
    pub unseen: Option<Moment>,
}

#[derive(Debug, Default)]
pub struct Recorder {
    znodes: Znodes,
}

/// The znodes that a batch wrote.
#[derive(Debug)]
pub struct Noted(Vec<Arc<str>>);

impl Recorder {
    /// Takes what a batch told, before anybody else takes it.
    pub fn note(&mut self, events: &[Event]) -> Noted {
        let mut written = Vec::new();
        for event in events {
            match event {
                Event::Put { path, data, stat } => {
                    self.put(path, data, *stat);
                    written.push(Arc::clone(path));
                }
                Event::Delete { path } => self.delete(path),
                // What was told of it stands.
                Event::Unreadable { .. } => {}
            }
        }
        Noted(written)
    }

    /// Says which of the written ones are bad, by their paths below the root.
    pub fn judge(&mut self, noted: Noted, is_bad: impl Fn(&str) -> bool) {
        for path in noted.0 {
            let Some(znode) = self.znodes.get_mut(&path) else {
                continue;
            };
            let bad = is_bad(&path);
            if znode.bad != bad || (!bad && znode.good.is_some()) {
                let znode = Arc::make_mut(znode);
                znode.bad = bad;
                if !bad {
                    znode.good = None;
                }
            }
        }
    }

    /// What to write.
    pub fn picture(&self, kept: Kept) -> Picture {
        Picture {
            znodes: self.znodes.clone(),
            kept,
        }
    }

    fn put(&mut self, path: &Arc<str>, data: &[u8], stat: Stat) {
        let past = self
            .znodes
            .get(path)
            .filter(|past| past.stat.czxid == stat.czxid);
        let good = past.and_then(|past| {
            let own = || Box::new((past.stat, past.data.clone()));
            if past.bad {
                past.good.clone()
            } else {
                Some(own())
            }
        });
        let znode = Znode {
            stat,
            data: data.into(),
            bad: false,
            good,
        };
        self.znodes.insert(Arc::clone(path), Arc::new(znode));
    }

    fn delete(&mut self, path: &str) {
        if path.is_empty() {
            self.znodes = Znodes::new();
            return;
        }
        // `0` follows `/`.
        let below = Arc::from(format!("{path}/"))..Arc::from(format!("{path}0"));
        let below = self.znodes.range(below).map(|(path, _)| Arc::clone(path));
        let own = Arc::from(path);
        for path in below.chain([own]).collect::<Vec<Arc<str>>>() {
            self.znodes.remove(&path);
        }
    }
}

impl From<Picture> for Recorder {
    fn from(picture: Picture) -> Self {
        Self {
            znodes: picture.znodes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;

    use super::*;

    fn put(path: &str, data: &str, czxid: i64, mzxid: i64) -> Event {
        Event::Put {
            path: path.into(),
            data: Bytes::copy_from_slice(data.as_bytes()),
            stat: Stat {
                czxid,
                mzxid,
                ..Stat::default()
            },
        }
    }

    fn record(recorder: &mut Recorder, events: &[Event]) {
        let noted = recorder.note(events);
        let bad: BTreeSet<String> = (recorder.znodes.iter())
            .filter(|(_, znode)| znode.data.starts_with(b"bad"))
            .map(|(path, _)| path.to_string())
            .collect();
        recorder.judge(noted, |path| bad.contains(path));
    }

    fn told(recorder: &Recorder) -> Vec<String> {
        let text = |event| match event {
            Event::Put { path, data, .. } => format!("{path}={}", String::from_utf8_lossy(&data)),
            Event::Delete { path } => format!("-{path}"),
            Event::Unreadable { path } => format!("?{path}"),
        };
        let all = recorder.znodes.iter();
        all.flat_map(|(path, znode)| znode.events(path))
            .map(text)
            .collect()
    }

    #[test]
    fn a_bad_one_is_kept_behind_its_last_good_data() {
        let mut recorder = Recorder::default();
        record(&mut recorder, &[put("a/i", "good", 1, 1)]);
        record(&mut recorder, &[put("a/i", "bad", 1, 2)]);
        record(&mut recorder, &[put("a/i", "bad again", 1, 3)]);
        assert_eq!(told(&recorder), ["a/i=good", "a/i=bad again"]);
        record(&mut recorder, &[put("a/i", "fine", 1, 4)]);
        assert_eq!(told(&recorder), ["a/i=fine"]);
    }

    #[test]
    fn another_znode_of_the_same_name_has_no_past() {
        let mut recorder = Recorder::default();
        record(&mut recorder, &[put("a/i", "good", 1, 1)]);
        record(&mut recorder, &[put("a/i", "bad", 2, 2)]);
        assert_eq!(told(&recorder), ["a/i=bad"]);
    }

    #[test]
    fn what_goes_takes_what_is_below_and_nothing_beside() {
        let mut recorder = Recorder::default();
        let all = ["a", "a!b", "a!b/i", "a/i", "a/j", "a0"];
        record(&mut recorder, &all.map(|path| put(path, "", 1, 1)));
        record(&mut recorder, &[Event::Delete { path: "a".into() }]);
        assert_eq!(told(&recorder), ["a!b=", "a!b/i=", "a0="]);
        record(&mut recorder, &[Event::Delete { path: "".into() }]);
        assert!(told(&recorder).is_empty());
    }
}
