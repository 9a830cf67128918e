//! Walks a document against what a configuration may hold, and collects every problem on the way.
//!
//! Invariant: a value with a problem is replaced by its default, so that the walk goes on and no
//! problem hides another one; the configuration is handed out only when there was none.

mod dns;
mod guard;
mod registry;
mod security;
mod state;

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    Admin, Config, Flags, Http, Mesh, Place, Problem, Problems, Registry, Xds,
    document::{self, Node, Step},
    value,
};

/// Each costs one more reading of the text; nobody reads further either.
const PROBLEM_LIMIT: usize = 100;

/// A part of the document: how it is reached, and how it is called.
#[derive(Clone, Debug, Default)]
struct Part {
    steps: Vec<Step>,
    key: String,
}

impl Part {
    fn entry(&self, index: usize, key: &str) -> Self {
        let dot = if self.key.is_empty() { "" } else { "." };
        self.then(Step::Value(index), format!("{}{dot}{key}", self.key))
    }

    fn item(&self, index: usize) -> Self {
        self.then(Step::Item(index), format!("{}[{index}]", self.key))
    }

    fn then(&self, step: Step, key: String) -> Self {
        let mut steps = self.steps.clone();
        steps.push(step);
        Self { steps, key }
    }

    /// Where its key stands, for what is wrong with the key itself or has no value to point at.
    fn of_key(&self) -> Self {
        let mut part = self.clone();
        if let Some(step) = part.steps.last_mut()
            && let Step::Value(index) = *step
        {
            *step = Step::Key(index);
        }
        part
    }
}

/// The known entries of a mapping.
type Section<'d> = BTreeMap<&'static str, (Part, &'d Node)>;

pub struct Checker<'t> {
    file: &'t str,
    text: &'t str,
    problems: Vec<Problem>,
    /// How many more there were than are kept.
    more: usize,
    /// Where the addresses of our own listeners were written, if they were.
    xds: Option<Place>,
    admin: Option<Place>,
}

impl<'t> Checker<'t> {
    pub fn new(file: &'t str, text: &'t str) -> Self {
        Self {
            file,
            text,
            problems: Vec::new(),
            more: 0,
            xds: None,
            admin: None,
        }
    }

    pub fn config(&mut self) -> Config {
        let document = match document::parse(self.text) {
            Ok(document) => document,
            Err(error) => {
                let place = self.place(error.location);
                self.push(place, "", format!("is no valid YAML: {}", error.message));
                Node::Null
            }
        };
        let keys = [
            "registries",
            "dns",
            "xds",
            "admin",
            "mesh",
            "guard",
            "state",
        ];
        let section = self.section(&Part::default(), &document, &keys);
        Config {
            registries: self.registries(section.get("registries")),
            dns: self.dns(section.get("dns")),
            xds: self.xds(section.get("xds")),
            admin: self.admin(section.get("admin")),
            mesh: self.mesh(section.get("mesh")),
            guard: self.guard(section.get("guard")),
            state: self.state(section.get("state")),
        }
    }

    /// Lays the flags over the file and checks what concerns both.
    pub fn finish(mut self, mut config: Config, flags: &Flags) -> Result<Config, Problems> {
        self.problems.sort_by_key(|problem| match problem.place {
            Place::Line { line, column, .. } => (line, column),
            _ => (0, 0),
        });
        self.lay_over_registries(&mut config.registries, flags);
        if self.flag(
            "--xds-listen",
            flags.xds_listen.as_ref(),
            value::xds_listen,
            &mut config.xds.listen,
        ) {
            self.xds = Some(Place::Flag("--xds-listen"));
        }
        if self.flag(
            "--admin-listen",
            flags.admin_listen.as_ref(),
            value::admin_listen,
            &mut config.admin.listen,
        ) {
            self.admin = Some(Place::Flag("--admin-listen"));
        }
        self.check_ports(&config);
        if self.problems.is_empty() {
            return Ok(config);
        }
        if self.more > 0 {
            let place = Place::File(self.file.to_owned());
            let message = format!("and {} more problems", self.more);
            self.problems.push(Problem {
                place,
                key: String::new(),
                message,
            });
        }
        Err(Problems(self.problems))
    }

    /// Flags are for a single registry.
    fn lay_over_registries(&mut self, registries: &mut [Registry], flags: &Flags) {
        if let [registry, _, ..] = registries {
            let first = registry.name.clone();
            for (flag, text) in [("--zookeeper", &flags.zookeeper), ("--root", &flags.root)] {
                if text.is_some() {
                    let message = format!(
                        "is for one registry, and the file has several; set that of `{first}` or another there"
                    );
                    self.push(Place::Flag(flag), "", message);
                }
            }
        }
        if let Some(registry) = registries.first_mut() {
            self.flag(
                "--zookeeper",
                flags.zookeeper.as_ref(),
                value::connect,
                &mut registry.connect,
            );
            self.flag(
                "--root",
                flags.root.as_ref(),
                value::root,
                &mut registry.root,
            );
        }
    }

    /// Whether the flag was given and good.
    fn flag<T>(
        &mut self,
        flag: &'static str,
        text: Option<&String>,
        check: fn(&str) -> Result<T, String>,
        target: &mut T,
    ) -> bool {
        match text.map(|text| check(text)) {
            Some(Ok(value)) => {
                *target = value;
                true
            }
            Some(Err(message)) => {
                self.push(Place::Flag(flag), "", message);
                false
            }
            None => false,
        }
    }

    fn check_ports(&mut self, config: &Config) {
        if !overlap(config.xds.listen, config.admin.listen) {
            return;
        }
        let message = format!(
            "{} for admin and {} for xds are the same port; give each its own",
            config.admin.listen, config.xds.listen
        );
        // Whoever wrote only one of them has to change that one.
        let (place, key) = match (self.admin.take(), self.xds.take()) {
            (Some(place @ Place::Flag(_)), _) | (_, Some(place @ Place::Flag(_))) => (place, ""),
            (Some(place), _) => (place, "admin.listen"),
            (None, Some(place)) => (place, "xds.listen"),
            (None, None) => return,
        };
        self.push(place, key, message);
    }

    fn xds(&mut self, part: Option<&(Part, &Node)>) -> Xds {
        let keys = [
            "listen",
            "maxStreams",
            "maxNames",
            "maxRequestBytes",
            "newStreamsPerSecond",
            "maxStreamAge",
        ];
        let section = self.subsection(part, &keys);
        let listen = section.get("listen");
        self.xds = listen.map(|(part, _)| self.locate(part));
        let or = Xds::default();
        Xds {
            listen: self.value(listen, value::xds_listen, or.listen),
            max_streams: self.value(section.get("maxStreams"), value::count, or.max_streams),
            max_names: self.value(section.get("maxNames"), value::count, or.max_names),
            max_request_bytes: self.value(
                section.get("maxRequestBytes"),
                value::count,
                or.max_request_bytes,
            ),
            new_streams_per_second: self.value(
                section.get("newStreamsPerSecond"),
                value::count,
                or.new_streams_per_second,
            ),
            max_stream_age: self.value(
                section.get("maxStreamAge"),
                value::stream_age,
                or.max_stream_age,
            ),
        }
    }

    fn admin(&mut self, part: Option<&(Part, &Node)>) -> Admin {
        let section = self.subsection(part, &["listen", "hosts"]);
        let listen = section.get("listen");
        self.admin = listen.map(|(part, _)| self.locate(part));
        Admin {
            listen: self.value(listen, value::admin_listen, Admin::default().listen),
            hosts: self.texts(section.get("hosts"), value::admin_host),
        }
    }

    fn mesh(&mut self, part: Option<&(Part, &Node)>) -> Mesh {
        let keys = [
            "outboundListen",
            "domainSuffix",
            "onDemand",
            "endpointIncrementsAbove",
            "emptyServices",
            "http",
            "loadBalancing",
        ];
        let section = self.subsection(part, &keys);
        let or = Mesh::default();
        Mesh {
            outbound_listen: self.value(
                section.get("outboundListen"),
                value::outbound_listen,
                or.outbound_listen,
            ),
            domain_suffix: self.value(
                section.get("domainSuffix"),
                value::domain_suffix,
                or.domain_suffix,
            ),
            on_demand: self.switch(section.get("onDemand"), or.on_demand),
            endpoint_increments_above: self.value(
                section.get("endpointIncrementsAbove"),
                value::threshold,
                or.endpoint_increments_above,
            ),
            empty_services: self.value(
                section.get("emptyServices"),
                value::empty_services,
                or.empty_services,
            ),
            http: self.http(section.get("http")),
            load_balancing: self.value(
                section.get("loadBalancing"),
                value::load_balancing,
                or.load_balancing,
            ),
        }
    }

    fn http(&mut self, part: Option<&(Part, &Node)>) -> Http {
        let keys = [
            "maxHeaders",
            "maxHeaderKib",
            "preserveCase",
            "defaultHost",
            "upstreamIdleTimeout",
        ];
        let section = self.subsection(part, &keys);
        let or = Http::default();
        Http {
            max_headers: self.value(
                section.get("maxHeaders"),
                value::max_headers,
                or.max_headers,
            ),
            max_header_kib: self.value(
                section.get("maxHeaderKib"),
                value::max_header_kib,
                or.max_header_kib,
            ),
            preserve_case: self.switch(section.get("preserveCase"), or.preserve_case),
            default_host: self.value(
                section.get("defaultHost"),
                value::default_host,
                or.default_host,
            ),
            upstream_idle_timeout: self.value(
                section.get("upstreamIdleTimeout"),
                value::upstream_idle_timeout,
                or.upstream_idle_timeout,
            ),
        }
    }

    fn subsection<'d>(
        &mut self,
        part: Option<&(Part, &'d Node)>,
        keys: &[&'static str],
    ) -> Section<'d> {
        part.map(|(part, node)| self.section(part, node, keys))
            .unwrap_or_default()
    }

    /// The entries with known `keys`; the first one of each counts.
    fn section<'d>(&mut self, part: &Part, node: &'d Node, keys: &[&'static str]) -> Section<'d> {
        let entries = match node {
            Node::Map(entries) => entries,
            // `xds:` with everything below it commented out.
            Node::Null => return Section::new(),
            _ => {
                self.wrong(part, node, &format!("a mapping of {}", listed(keys)));
                return Section::new();
            }
        };
        let mut section = Section::new();
        for (index, (key, value)) in entries.iter().enumerate() {
            let known = match key {
                Node::Text(key) => keys.iter().find(|known| *known == key),
                _ => None,
            };
            let part = part.entry(index, &key.key());
            match known {
                None => self.report(&part.of_key(), unknown(&key.key(), keys)),
                Some(known) if section.contains_key(known) => self.report(
                    &part.of_key(),
                    "stands here a second time; keep one of them".to_owned(),
                ),
                Some(known) => {
                    section.insert(known, (part, value));
                }
            }
        }
        section
    }

    fn value<T>(
        &mut self,
        part: Option<&(Part, &Node)>,
        check: fn(&str) -> Result<T, String>,
        default: T,
    ) -> T {
        let Some((part, node)) = part else {
            return default;
        };
        let text = match node {
            // Durations without a unit come as numbers, and their check says so best.
            Node::Text(text) | Node::Number(text) => text.clone(),
            Node::Null => {
                let message = "is empty; write a value, or leave the key out for the default";
                self.report(&part.of_key(), message.to_owned());
                return default;
            }
            other => {
                self.wrong(part, other, "text");
                return default;
            }
        };
        check(&text).unwrap_or_else(|message| {
            self.report(part, message);
            default
        })
    }

    fn switch(&mut self, part: Option<&(Part, &Node)>, default: bool) -> bool {
        match part {
            None => default,
            Some((_, Node::Bool(on))) => *on,
            Some((part, other)) => {
                self.wrong(part, other, "`true` or `false`");
                default
            }
        }
    }

    fn wrong(&mut self, part: &Part, node: &Node, wanted: &str) {
        let part = if *node == Node::Null {
            part.of_key()
        } else {
            part.clone()
        };
        self.report(&part, format!("is {}; write {wanted}", node.kind()));
    }

    fn report(&mut self, part: &Part, message: String) {
        if self.problems.len() >= PROBLEM_LIMIT {
            self.more += 1;
            return;
        }
        let place = self.locate(part);
        self.push(place, &part.key, message);
    }

    fn push(&mut self, place: Place, key: &str, message: String) {
        self.problems.push(Problem {
            place,
            key: key.to_owned(),
            message,
        });
    }

    fn locate(&self, part: &Part) -> Place {
        self.place(document::locate(self.text, &part.steps))
    }

    fn place(&self, location: Option<(usize, usize)>) -> Place {
        let file = self.file.to_owned();
        match location {
            Some((line, column)) => Place::Line { file, line, column },
            None => Place::File(file),
        }
    }
}

/// Whether both cannot be bound at once.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let everywhere = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (everywhere || a.ip() == b.ip())
}

fn unknown(key: &str, keys: &[&str]) -> String {
    let nearest = keys
        .iter()
        .map(|known| (distance(key, known), known))
        .min()
        .filter(|(distance, known)| *distance * 2 <= known.len());
    match nearest {
        Some((_, known)) => format!("unknown key; did you mean `{known}`?"),
        None => format!("unknown key; known here: {}", listed(keys)),
    }
}

/// Case and underscores are how other files spell the same key.
fn distance(key: &str, known: &str) -> usize {
    let plain = |text: &str| text.replace(['_', '-'], "").to_lowercase();
    strsim::damerau_levenshtein(&plain(key), &plain(known))
}

fn listed(keys: &[&str]) -> String {
    keys.join(", ")
}
