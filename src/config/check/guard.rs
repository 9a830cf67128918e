//! The section of the guard.

use super::{Checker, Part};
use crate::config::{Guard, document::Node, value};

impl Checker<'_> {
    pub(super) fn guard(&mut self, part: Option<&(Part, &Node)>) -> Guard {
        let keys = [
            "enabled",
            "window",
            "serviceShare",
            "registryShare",
            "minimum",
            "holdFor",
            "linger",
            "degraded",
            "probe",
        ];
        let section = self.subsection(part, &keys);
        let or = Guard::default();
        Guard {
            enabled: self.switch(section.get("enabled"), or.enabled),
            window: self.value(section.get("window"), value::guard_time, or.window),
            service_share: self.value(section.get("serviceShare"), value::share, or.service_share),
            registry_share: self.value(
                section.get("registryShare"),
                value::share,
                or.registry_share,
            ),
            minimum: self.value(section.get("minimum"), value::count, or.minimum),
            hold_for: self.value(section.get("holdFor"), value::guard_time, or.hold_for),
            linger: self.value(section.get("linger"), value::linger, or.linger),
            degraded: self.switch(section.get("degraded"), or.degraded),
            probe: self.switch(section.get("probe"), or.probe),
        }
    }
}
