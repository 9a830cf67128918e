//! Where in a tree the services and their instances stand.
//!
//! A layout is a list of patterns, each a path below the root: `*/*` is a service with its instances,
//! `*/providers/*` has a fixed level between the two, `*/*/*/*` makes the service's name of three
//! levels. The last `*` is an instance, those before it name the service. A path is taken for what the
//! pattern with the most fixed names says of it, so that several layouts can share a tree.
//!
//! It refuses to know payloads. Invariant: a path has one place, whatever else is in the tree, and
//! what has no place is never read. The tree machine and the index both ask here, so they agree.

use std::{fmt, str::FromStr};

/// What a path below the root stands for. Services are told by the part of the path that names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    Root,
    /// Holds services.
    Above,
    Service(&'a str),
    /// Of a service, with a fixed name; a service that has one exists by its instances alone.
    Between(&'a str),
    Instance(&'a str),
    Elsewhere,
}

/// What is read of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its children.
    Inner,
    /// Its data.
    Leaf,
    Nothing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout(Vec<Pattern>);

/// Levels below the root; `None` is a `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern(Vec<Option<Box<str>>>);

/// Levels below the root, at most.
const DEPTH_MAX: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error(
        "{0:?} is no layout; write one like */* or */providers/*: names and `*`, two of them at least, the last one for the instances"
    )]
    Unreadable(String),
    #[error(
        "{instances} and {deeper} contradict each other: what is an instance by the first holds instances by the second; keep one of them, or write a name where they part, like */* and */providers/*"
    )]
    Contradiction { instances: String, deeper: String },
}

impl Layout {
    /// A service and its instances.
    pub fn flat() -> Self {
        Self(vec![Pattern::of("*/*")])
    }

    /// Dubbo's interfaces. What consumers leave beside the providers is told apart, and not read.
    pub fn dubbo() -> Self {
        let patterns = [
            "*/providers/*",
            "*/consumers",
            "*/configurators",
            "*/routers",
        ];
        Self(patterns.map(Pattern::of).into())
    }

    /// The usual path of `SmartStack`, with or without its last level.
    pub fn nerve() -> Self {
        Self(["*/services/*", "*/*"].map(Pattern::of).into())
    }

    /// All of these in one tree.
    pub fn mixed() -> Self {
        let Self(mut patterns) = Self::dubbo();
        patterns.extend(Self::nerve().0);
        Self(patterns)
    }

    pub fn place<'a>(&self, path: &'a str) -> Place<'a> {
        if path.is_empty() {
            return Place::Root;
        }
        let depth = path.split('/').count();
        let matching = self.0.iter().filter(|pattern| pattern.matches(path, depth));
        // Of equally telling ones the first.
        let best = matching.rev().max_by_key(|pattern| pattern.fixed(depth));
        best.map_or(Place::Elsewhere, |pattern| pattern.place(path, depth))
    }

    pub fn role(&self, path: &str) -> Role {
        match self.place(path) {
            Place::Elsewhere => Role::Nothing,
            Place::Instance(_) => Role::Leaf,
            Place::Between(_) if self.ends_at(path) => Role::Leaf,
            _ => Role::Inner,
        }
    }

    /// Whether instances may stand right below a service; one where they may not exists by them alone.
    pub fn holds_instances(&self, service: &str) -> bool {
        // No fixed level has this name.
        matches!(self.place(&format!("{service}/\0")), Place::Instance(_))
    }

    /// Whether no pattern leads further.
    fn ends_at(&self, path: &str) -> bool {
        let depth = path.split('/').count();
        let longer = |pattern: &&Pattern| pattern.0.len() > depth;
        !(self.0.iter().filter(longer)).any(|pattern| pattern.matches(path, depth))
    }
}

impl Pattern {
    fn of(text: &str) -> Self {
        let level = |name: &str| (name != "*").then(|| name.into());
        Self(text.split('/').map(level).collect())
    }

    /// Whether it leads to or through a path of that depth.
    fn matches(&self, path: &str, depth: usize) -> bool {
        depth <= self.0.len()
            && path.split('/').zip(&self.0).all(|(name, level)| {
                !name.is_empty() && level.as_deref().is_none_or(|fixed| fixed == name)
            })
    }

    /// Whether some path is an instance by this pattern though the other leads further down from it, and
    /// has no more fixed names to be told by.
    fn contradicts(&self, other: &Self) -> bool {
        let depth = self.0.len();
        let meet = |(mine, theirs): (&Option<Box<str>>, &Option<Box<str>>)| {
            mine.is_none() || theirs.is_none() || mine == theirs
        };
        depth < other.0.len()
            && self.0.last() == Some(&None)
            && self.0.iter().zip(&other.0).all(meet)
            && other.fixed(depth) <= self.fixed(depth)
    }

    /// How many of the first levels have fixed names.
    fn fixed(&self, depth: usize) -> usize {
        self.0[..depth].iter().flatten().count()
    }

    /// The levels down to the last that names the service.
    fn service_depth(&self) -> usize {
        let named = match self.0.last() {
            Some(None) => &self.0[..self.0.len() - 1],
            _ => &self.0[..],
        };
        named
            .iter()
            .rposition(Option::is_none)
            .map_or(0, |at| at + 1)
    }

    fn place<'a>(&self, path: &'a str, depth: usize) -> Place<'a> {
        let service_depth = self.service_depth();
        if depth < service_depth {
            return Place::Above;
        }
        let end = path.match_indices('/').nth(service_depth - 1);
        let service = &path[..end.map_or(path.len(), |(at, _)| at)];
        if depth == service_depth {
            Place::Service(service)
        } else if depth == self.0.len() && self.0[depth - 1].is_none() {
            Place::Instance(service)
        } else {
            Place::Between(service)
        }
    }
}

impl FromStr for Layout {
    type Err = LayoutError;

    /// Several patterns stand with commas between them.
    fn from_str(text: &str) -> Result<Self, LayoutError> {
        let pattern = |text: &str| {
            let pattern = Pattern::of(text.trim().trim_matches('/'));
            let stars = pattern.0.iter().filter(|level| level.is_none()).count();
            let named = |level: &Option<Box<str>>| {
                (level.as_deref()).is_none_or(|name| !name.is_empty() && !name.contains('*'))
            };
            let good = stars >= 2
                && pattern.0.last() == Some(&None)
                && pattern.0.len() <= DEPTH_MAX
                && pattern.0.iter().all(named);
            good.then_some(pattern)
        };
        let patterns: Option<Vec<_>> = text.split(',').map(pattern).collect();
        let patterns = patterns.ok_or_else(|| LayoutError::Unreadable(text.to_owned()))?;
        for instances in &patterns {
            if let Some(deeper) = patterns.iter().find(|other| instances.contradicts(other)) {
                return Err(LayoutError::Contradiction {
                    instances: instances.to_string(),
                    deeper: deeper.to_string(),
                });
            }
        }
        Ok(Self(patterns))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|l| l.as_deref().unwrap_or("*")).collect();
        f.write_str(&names.join("/"))
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, pattern) in self.0.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            write!(f, "{comma}{pattern}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_layout_has_services_and_instances_and_nothing_below() {
        let layout = Layout::flat();
        assert_eq!(layout.place(""), Place::Root);
        assert_eq!(layout.place("orders"), Place::Service("orders"));
        assert_eq!(layout.place("orders/i-1"), Place::Instance("orders"));
        assert_eq!(layout.place("orders/i-1/x"), Place::Elsewhere);
        for odd in ["/", "/x", "x/", "x//y"] {
            assert_eq!(layout.place(odd), Place::Elsewhere, "{odd:?}");
        }
    }

    #[test]
    fn every_layout_finds_its_own_in_a_mixed_tree() {
        let layout = Layout::mixed();
        for (path, place, role) in [
            ("", Place::Root, Role::Inner),
            ("a", Place::Service("a"), Role::Inner),
            ("a/i", Place::Instance("a"), Role::Leaf),
            ("a/providers", Place::Between("a"), Role::Inner),
            ("a/providers/u", Place::Instance("a"), Role::Leaf),
            ("a/consumers", Place::Between("a"), Role::Leaf),
            ("a/consumers/u", Place::Elsewhere, Role::Nothing),
            ("a/services", Place::Between("a"), Role::Inner),
            ("a/services/i_0", Place::Instance("a"), Role::Leaf),
            ("a/i/x", Place::Elsewhere, Role::Nothing),
        ] {
            assert_eq!(layout.place(path), place, "{path}");
            assert_eq!(layout.role(path), role, "{path}");
        }
    }

    #[test]
    fn instances_stand_right_below_a_service_where_a_pattern_says_so() {
        assert!(Layout::flat().holds_instances("a"));
        assert!(Layout::mixed().holds_instances("a"));
        assert!(!Layout::dubbo().holds_instances("metadata"));
        let deep: Layout = "*/jobs/*/*".parse().unwrap();
        assert!(deep.holds_instances("www/jobs/prod"));
    }

    #[test]
    fn a_service_may_be_named_by_several_levels_with_fixed_ones_between() {
        let layout: Layout = "*/jobs/*/*/members/*".parse().unwrap();
        for (path, place) in [
            ("www", Place::Above),
            ("www/jobs", Place::Above),
            ("www/other", Place::Elsewhere),
            ("www/jobs/prod", Place::Above),
            ("www/jobs/prod/hello", Place::Service("www/jobs/prod/hello")),
            (
                "www/jobs/prod/hello/members",
                Place::Between("www/jobs/prod/hello"),
            ),
            (
                "www/jobs/prod/hello/members/member_1",
                Place::Instance("www/jobs/prod/hello"),
            ),
        ] {
            assert_eq!(layout.place(path), place, "{path}");
        }
    }

    #[test]
    fn what_is_no_layout_is_refused_with_an_example() {
        for text in [
            "",
            "*",
            "*/x",
            "a/*",
            "*/*x/*",
            "*//*",
            "*/*,",
            "*/*/*/*/*/*/*/*/*",
        ] {
            let error = text.parse::<Layout>().unwrap_err().to_string();
            assert!(error.contains("like */*"), "{error}");
        }
    }

    #[test]
    fn layouts_by_which_an_instance_would_hold_instances_are_refused() {
        for (text, instances, deeper) in [
            ("*/*,*/*/*", "*/*", "*/*/*"),
            ("*/*/*,*/*", "*/*", "*/*/*"),
            ("*/b/*, a/*/*/*", "*/b/*", "a/*/*/*"),
            ("*/b/*,*/*/*/x/*", "*/b/*", "*/*/*/x/*"),
        ] {
            let error = text.parse::<Layout>().unwrap_err().to_string();
            let begin = format!("{instances} and {deeper} contradict");
            assert!(error.starts_with(&begin), "{error}");
        }
    }

    /// No znode that is read for its data, and so never listed, has anything below it.
    #[test]
    fn what_is_read_for_its_data_has_nothing_below_it() {
        let names = ["a", "b", "services", "providers"];
        let layouts = ["x/*/*,*/y/*", "*/services/*,*/*", "*/*,a/*/*", "*/b/*,*/*"];
        let layouts = layouts.map(|text| text.parse::<Layout>().unwrap());
        for layout in layouts.into_iter().chain([Layout::mixed()]) {
            let mut paths = names.map(str::to_owned).to_vec();
            while let Some(path) = paths.pop() {
                if path.split('/').count() > 3 {
                    continue;
                }
                for name in names {
                    let below = format!("{path}/{name}");
                    let leaf = layout.role(&path) == Role::Leaf;
                    assert!(!leaf || layout.role(&below) == Role::Nothing, "{below}");
                    paths.push(below);
                }
            }
        }
    }

    #[test]
    fn a_layout_reads_as_it_is_written() {
        for text in ["*/*", "*/providers/*", "*/*/*/*", "x/*/*,*/y/*"] {
            assert_eq!(text.parse::<Layout>().unwrap().to_string(), text);
        }
    }
}
