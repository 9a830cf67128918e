//! The section of the state on disk.

use super::{Checker, Part};
use crate::config::{State, document::Node, value};

impl Checker<'_> {
    pub(super) fn state(&mut self, part: Option<&(Part, &Node)>) -> State {
        let section = self.subsection(part, &["directory", "wait"]);
        let or = State::default();
        let directory = section.get("directory");
        let directory = directory
            .map(|part| self.value(Some(part), value::directory, std::path::PathBuf::new()));
        State {
            directory,
            wait: self.value(section.get("wait"), value::state_wait, or.wait),
        }
    }
}
