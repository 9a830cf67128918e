//! `dns`: how host names in registrations are followed.

use super::{Checker, Part};
use crate::config::{Dns, document::Node, value};

impl Checker<'_> {
    pub(super) fn dns(&mut self, part: Option<&(Part, &Node)>) -> Dns {
        let section = self.subsection(part, &["refresh"]);
        let or = Dns::default();
        Dns {
            refresh: self.value(section.get("refresh"), value::refresh, or.refresh),
        }
    }
}
