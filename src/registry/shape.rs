//! What a configuration makes of a registry: which services and instances of it are served, what
//! they are called, and which keys of their metadata mean something.
//!
//! It refuses to know znodes and formats: it sees names and what was decoded. Invariant: equal
//! registrations are shaped equally, whatever else is there.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::Serialize;

use super::{
    format::weight_under,
    reason::{Reason, quoted},
    registration::Decoded,
};
use crate::model::Health;

/// Everything that can be set, nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Which services are served; all if there is none.
    pub include: Vec<Glob>,
    /// Which are not, even if included.
    pub exclude: Vec<Glob>,
    /// The first that fits gives a service its name.
    pub rename: Vec<Rename>,
    /// Instances outside of all of these are not served; all are inside if there is none.
    pub networks: Vec<Network>,
    /// Instances without all of these are not served: keys of the metadata, with what fits.
    pub metadata: Vec<(String, Glob)>,
    pub keys: Keys,
}

/// The keys of the metadata that hold what an instance is otherwise told by. An instance without the
/// key keeps what its format says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Keys {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Becomes `version` in the metadata.
    pub version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// `up`, `passing`, `healthy`, `ok`, `true`, `1`, in any case, is healthy, anything else not.
    pub health: Option<String>,
}

impl Shape {
    /// Whether a service is served.
    pub fn selects(&self, service: &str) -> bool {
        let any = |globs: &[Glob]| globs.iter().any(|glob| glob.fits(service).is_some());
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    /// What a service is called; `None` as it was.
    pub fn rename(&self, service: &str) -> Option<String> {
        self.rename.iter().find_map(|rename| rename.apply(service))
    }

    /// Puts what the metadata say into its place.
    pub fn apply(&self, decoded: &mut Decoded) -> Result<(), Reason> {
        let value_of = |key: &Option<String>| {
            let key = key.as_ref()?;
            let value = decoded.metadata.get(key).filter(|v| !v.trim().is_empty());
            value.cloned()
        };
        let [weight, zone, version, health] = [
            &self.keys.weight,
            &self.keys.zone,
            &self.keys.version,
            &self.keys.health,
        ]
        .map(value_of);
        if let (Some(weight), Some(key)) = (weight, &self.keys.weight) {
            decoded.weight = weight_under(key, &weight)?;
        }
        if let Some(zone) = zone {
            decoded.zone = Some(zone.trim().to_owned());
        }
        if let Some(version) = version {
            decoded.metadata.insert("version".to_owned(), version);
        }
        if let Some(health) = health
            && decoded.health == Health::Healthy
            && !is_well(&health)
        {
            decoded.health = Health::Unhealthy;
        }
        Ok(())
    }

    /// Why an instance is not served, if the selection leaves it out.
    pub fn leaves_out(&self, address: IpAddr, decoded: &Decoded) -> Option<String> {
        if !self.networks.is_empty() && !self.networks.iter().any(|n| n.holds(address)) {
            return Some(format!("{address} is in none of the selected networks"));
        }
        let lacks = |(key, glob): &&(String, Glob)| {
            let value = decoded.metadata.get(key);
            value.is_none_or(|value| glob.fits(value).is_none())
        };
        let (key, glob) = self.metadata.iter().find(lacks)?;
        Some(format!("metadata {} is not {glob}", quoted(key)))
    }
}

fn is_well(health: &str) -> bool {
    let well = ["up", "passing", "healthy", "ok", "true", "1"];
    well.iter().any(|w| health.trim().eq_ignore_ascii_case(w))
}

/// A text in which `*` stands for any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn is_like(&self, text: &str) -> bool {
        self.fits(text).is_some()
    }

    /// What the stars stand for, if it fits.
    fn fits<'t>(&self, text: &'t str) -> Option<Vec<&'t str>> {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let mut rest = text.strip_prefix(first)?;
        let mut found = Vec::new();
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty().then_some(found);
        }
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            let at = if last {
                rest.ends_with(part).then(|| rest.len() - part.len())?
            } else {
                rest.find(part)?
            };
            found.push(&rest[..at]);
            rest = &rest[at + part.len()..];
        }
        Some(found)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

/// A new name for services that fit; its stars stand for what those of the old one stood for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    from: Glob,
    to: String,
}

impl Rename {
    /// `None` where `to` has more stars than `from`.
    pub fn new(from: &str, to: &str) -> Option<Self> {
        let stars = |text: &str| text.matches('*').count();
        (!to.is_empty() && stars(to) <= stars(from)).then(|| Self {
            from: Glob::new(from),
            to: to.to_owned(),
        })
    }

    fn apply(&self, name: &str) -> Option<String> {
        let found = self.from.fits(name)?;
        let mut parts = self.to.split('*');
        let mut renamed = parts.next().unwrap_or_default().to_owned();
        for (part, star) in parts.zip(found) {
            renamed.push_str(star);
            renamed.push_str(part);
        }
        Some(renamed)
    }
}

/// Addresses that begin alike: `10.1.0.0/16`, `2001:db8::/32`, or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    fn holds(&self, address: IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u32| {
            let rest = width - u32::from(self.bits);
            a.checked_shr(rest) == b.checked_shr(rest)
        };
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| ())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(width), |bits| bits.parse().map_err(|_| ()))?;
        (bits <= width).then_some(Self { address, bits }).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{model::Weight, registry::registration::Host};

    fn decoded(metadata: &[(&str, &str)]) -> Decoded {
        let entry = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Decoded {
            part: None,
            id: None,
            host: Host::Ip([10, 0, 0, 1].into()),
            port: 80,
            weight: Weight::default(),
            warm_up: None,
            zone: None,
            health: Health::Healthy,
            metadata: metadata.iter().map(entry).collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (glob, text, stars) in [
            ("a", "a", Some(vec![])),
            ("a", "ab", None),
            ("a*", "ab", Some(vec!["b"])),
            ("*", "", Some(vec![""])),
            ("a*a", "a", None),
            ("com.*.*", "com.foo.bar.Baz", Some(vec!["foo", "bar.Baz"])),
            ("*-canary", "x-canary-canary", Some(vec!["x-canary"])),
        ] {
            assert_eq!(Glob::new(glob).fits(text), stars, "{glob} {text}");
        }
    }

    #[test]
    fn exclusion_wins_over_inclusion_and_nothing_set_selects_all() {
        let shape = |include: &[&str], exclude: &[&str]| Shape {
            include: include.iter().map(|g| Glob::new(*g)).collect(),
            exclude: exclude.iter().map(|g| Glob::new(*g)).collect(),
            ..Shape::default()
        };
        assert!(shape(&[], &[]).selects("a"));
        assert!(!shape(&["b*"], &[]).selects("a"));
        assert!(shape(&["b*", "a"], &["b"]).selects("a"));
        assert!(!shape(&["b*"], &["b"]).selects("b"));
    }

    #[test]
    fn the_first_rename_that_fits_counts() {
        let rename = |from, to| Rename::new(from, to).unwrap();
        let shape = Shape {
            rename: vec![rename("com.foo.*", "*"), rename("*", "x-*")],
            ..Shape::default()
        };
        assert_eq!(shape.rename("com.foo.Bar").as_deref(), Some("Bar"));
        assert_eq!(shape.rename("orders").as_deref(), Some("x-orders"));
        assert_eq!(Rename::new("a", "*"), None);
        assert_eq!(Rename::new("a", ""), None);
    }

    #[test]
    fn networks_hold_addresses_that_begin_alike() {
        for (network, address, holds) in [
            ("10.1.0.0/16", "10.1.255.1", true),
            ("10.1.0.0/16", "10.2.0.1", false),
            ("10.1.0.7", "10.1.0.7", true),
            ("0.0.0.0/0", "10.1.0.7", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ] {
            let network: Network = network.parse().unwrap();
            assert_eq!(
                network.holds(address.parse().unwrap()),
                holds,
                "{network:?}"
            );
        }
        for bad in ["10.0.0.0/33", "10.0.0", "::/129", "10.0.0.0/x", ""] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn mapped_keys_take_the_place_of_what_the_format_says() {
        let shape = Shape {
            keys: Keys {
                weight: Some("w".to_owned()),
                zone: Some("az".to_owned()),
                version: Some("build".to_owned()),
                health: Some("state".to_owned()),
            },
            ..Shape::default()
        };
        let mut one = decoded(&[
            ("w", "7"),
            ("az", " b "),
            ("build", "v2"),
            ("state", "DOWN"),
        ]);
        shape.apply(&mut one).unwrap();
        assert_eq!((one.weight.get(), one.zone.as_deref()), (7, Some("b")));
        assert_eq!(one.metadata["version"], "v2");
        assert_eq!(one.health, Health::Unhealthy);
        let mut none = decoded(&[("state", "Passing")]);
        shape.apply(&mut none).unwrap();
        assert_eq!(none, decoded(&[("state", "Passing")]));
        let reason = shape.apply(&mut decoded(&[("w", "heavy")])).unwrap_err();
        assert!(reason.as_str().contains("w `heavy`"), "{reason}");
    }

    #[test]
    fn what_is_left_out_says_why() {
        let shape = Shape {
            networks: vec!["10.0.0.0/24".parse().unwrap()],
            metadata: vec![("env".to_owned(), Glob::new("prod*"))],
            ..Shape::default()
        };
        let why = |ip: [u8; 4], env: &str| shape.leaves_out(ip.into(), &decoded(&[("env", env)]));
        assert_eq!(why([10, 0, 0, 1], "prod-eu"), None);
        assert!(why([10, 0, 1, 1], "prod").unwrap().contains("networks"));
        assert!(
            why([10, 0, 0, 1], "test")
                .unwrap()
                .contains("`env` is not `prod*`")
        );
    }
}
