//! The registries of a configuration: where each is, how it is laid out and written, and what of it is
//! served under which name.

use std::collections::BTreeMap;

use super::{Checker, Part, Section};
use crate::{
    config::{Instances, Keys, Registry, Rename, Services, document::Node, value},
    registry::shape,
};

impl Checker<'_> {
    pub(super) fn registries(&mut self, part: Option<&(Part, &Node)>) -> Vec<Registry> {
        let Some((part, node)) = part else {
            return vec![Registry::default()];
        };
        let Node::List(items) = node else {
            self.wrong(part, node, "a list: begin each registry with `- `");
            return vec![Registry::default()];
        };
        if items.is_empty() {
            let message = "is empty; write one registry, or leave the key out for the default one";
            self.report(part, message.to_owned());
            return vec![Registry::default()];
        }
        let registries: Vec<_> = items
            .iter()
            .enumerate()
            .map(|(index, item)| self.registry(&part.item(index), item))
            .collect();
        self.check_names(part, &registries);
        registries
    }

    fn check_names(&mut self, part: &Part, registries: &[Registry]) {
        for (index, registry) in registries.iter().enumerate() {
            let name = &registry.name;
            let Some(first) = registries[..index].iter().position(|r| r.name == *name) else {
                continue;
            };
            let message =
                format!("has the name `{name}` of registries[{first}]; give each its own name");
            self.report(&part.item(index), message);
        }
    }

    fn registry(&mut self, part: &Part, node: &Node) -> Registry {
        let keys = [
            "name",
            "connect",
            "root",
            "layout",
            "format",
            "sessionTimeout",
            "auth",
            "tls",
            "priority",
            "required",
            "ttl",
            "services",
            "instances",
        ];
        let section = self.section(part, node, &keys);
        let or = Registry::default();
        let registry = Registry {
            name: self.value(section.get("name"), value::registry_name, or.name),
            connect: self.value(section.get("connect"), value::connect, or.connect),
            root: self.value(section.get("root"), value::root, or.root),
            layout: self.value(section.get("layout"), value::layout, or.layout),
            format: self.value(section.get("format"), value::format, or.format),
            session_timeout: self.value(
                section.get("sessionTimeout"),
                value::session_timeout,
                or.session_timeout,
            ),
            security: self.security(&section),
            priority: self.value(section.get("priority"), value::priority, or.priority),
            required: self.switch(section.get("required"), or.required),
            ttl: self.value(section.get("ttl"), value::ttl, or.ttl),
            services: self.services(section.get("services")),
            instances: self.instances(section.get("instances")),
        };
        self.check_ttl(&section, &registry);
        registry
    }

    /// That a connection is silent is noticed within the session's time: what is heard of no more until then
    /// must not lapse.
    fn check_ttl(&mut self, section: &Section<'_>, registry: &Registry) {
        let timeout = registry.session_timeout;
        if let (Some((part, _)), Some(ttl)) = (section.get("ttl"), registry.ttl)
            && ttl <= timeout
        {
            let message = format!(
                "`ttl` ({ttl:?}) is not over `sessionTimeout` ({timeout:?}), so that a connection that is cut would look \
                 like abandoned registrations; write a longer ttl, or a shorter sessionTimeout"
            );
            self.report(part, message);
        }
    }

    fn services(&mut self, part: Option<&(Part, &Node)>) -> Services {
        let section = self.subsection(part, &["include", "exclude", "rename"]);
        Services {
            include: self.texts(section.get("include"), value::pattern),
            exclude: self.texts(section.get("exclude"), value::pattern),
            rename: self.items(section.get("rename"), Self::rename),
        }
    }

    fn rename(&mut self, part: &Part, node: &Node) -> Option<Rename> {
        let section = self.section(part, node, &["from", "to"]);
        let mut text = |key| {
            if section.contains_key(key) {
                self.value(section.get(key), value::pattern, String::new())
            } else {
                self.report(part, format!("has no `{key}`; write both `from` and `to`"));
                String::new()
            }
        };
        let (from, to) = (text("from"), text("to"));
        if from.is_empty() || to.is_empty() {
            return None;
        }
        if shape::Rename::new(&from, &to).is_none() {
            let message =
                format!("`{to}` has more stars than `{from}`; each stands for one of those");
            self.report(part, message);
        }
        Some(Rename { from, to })
    }

    fn instances(&mut self, part: Option<&(Part, &Node)>) -> Instances {
        let section = self.subsection(part, &["networks", "metadata", "keys"]);
        Instances {
            networks: self.texts(section.get("networks"), value::network),
            metadata: self.metadata(section.get("metadata")),
            keys: self.metadata_keys(&section),
        }
    }

    fn metadata(&mut self, part: Option<&(Part, &Node)>) -> BTreeMap<String, String> {
        let Some((part, node)) = part else {
            return BTreeMap::new();
        };
        let Node::Map(entries) = node else {
            self.wrong(part, node, "a mapping of metadata keys to patterns");
            return BTreeMap::new();
        };
        let mut metadata = BTreeMap::new();
        for (index, (key, value)) in entries.iter().enumerate() {
            let key = key.key();
            let part = part.entry(index, &key);
            let pattern = self.value(Some(&(part, value)), value::pattern, String::new());
            metadata.insert(key, pattern);
        }
        metadata
    }

    fn metadata_keys(&mut self, section: &Section<'_>) -> Keys {
        let section = self.subsection(
            section.get("keys"),
            &["weight", "zone", "version", "health"],
        );
        let mut key = |name| {
            let key = self.value(section.get(name), value::pattern, String::new());
            Some(key).filter(|key| !key.is_empty())
        };
        Keys {
            weight: key("weight"),
            zone: key("zone"),
            version: key("version"),
            health: key("health"),
        }
    }

    pub(super) fn texts(
        &mut self,
        part: Option<&(Part, &Node)>,
        check: fn(&str) -> Result<String, String>,
    ) -> Vec<String> {
        self.items(part, |checker, part, node| {
            let text = checker.value(Some(&(part.clone(), node)), check, String::new());
            Some(text).filter(|text| !text.is_empty())
        })
    }

    fn items<T>(
        &mut self,
        part: Option<&(Part, &Node)>,
        item: impl Fn(&mut Self, &Part, &Node) -> Option<T>,
    ) -> Vec<T> {
        let Some((part, node)) = part else {
            return Vec::new();
        };
        let Node::List(nodes) = node else {
            self.wrong(part, node, "a list: begin each item with `- `");
            return Vec::new();
        };
        let mut items = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            items.extend(item(self, &part.item(index), node));
        }
        items
    }
}
