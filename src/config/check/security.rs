//! `registries[].auth` and `registries[].tls`: whom to be, whom to trust, and where the secrets are.
//!
//! What files hold is none of its affair: a file may be there only where the server runs.

use std::path::PathBuf;

use super::{Checker, Part, Section, listed};
use crate::{
    config::{document::Node, value},
    zookeeper::security::{Auth, Identity, Login, Secret, Security, Tls},
};

impl Checker<'_> {
    /// Of a registry's entries.
    pub(super) fn security(&mut self, registry: &Section) -> Security {
        let security = Security {
            auth: self.auth(registry.get("auth")),
            tls: self.tls(registry.get("tls")),
        };
        if security.tls.is_some()
            && let Some((part, Node::Text(connect))) = registry.get("connect")
            && value::connect(connect).is_ok()
            && let Err(message) = value::secure_connect(connect)
        {
            self.report(part, message);
        }
        security
    }

    fn auth(&mut self, part: Option<&(Part, &Node)>) -> Auth {
        let section = self.subsection(part, &["digest", "sasl"]);
        Auth {
            digest: self.login(section.get("digest")),
            sasl: self.login(section.get("sasl")),
        }
    }

    fn login(&mut self, part: Option<&(Part, &Node)>) -> Option<Login> {
        let keys = ["user", "passwordFile", "passwordVariable"];
        let section = self.subsection(part, &keys);
        let (place, _) = part?;
        if !section.contains_key("user") {
            let message = "has no `user`; write the name to log in with";
            self.report(&place.of_key(), message.to_owned());
        }
        let user = self.value(section.get("user"), value::user, String::new());
        let password = self.secret(place, &section);
        Some(Login { user, password })
    }

    fn secret(&mut self, place: &Part, section: &Section) -> Secret {
        let (file, variable) = (section.get("passwordFile"), section.get("passwordVariable"));
        if file.is_some() == variable.is_some() {
            let has = if file.is_some() { "both" } else { "neither" };
            let message =
                format!("has {has} of `passwordFile` and `passwordVariable`; write one of them");
            self.report(&place.of_key(), message);
        }
        match variable {
            Some(_) => Secret::Variable(self.value(variable, value::variable, String::new())),
            None => Secret::File(self.value(file, value::path, PathBuf::new())),
        }
    }

    fn tls(&mut self, part: Option<&(Part, &Node)>) -> Option<Tls> {
        let keys = ["caFile", "certFile", "keyFile"];
        let section = self.subsection(part, &keys);
        let (place, _) = part?;
        if !section.contains_key("caFile") {
            let message = "has no `caFile`; write the PEM file of the certificates that the ensemble's are signed by";
            self.report(&place.of_key(), message.to_owned());
        }
        let pair = ["certFile", "keyFile"];
        let given = pair.map(|key| section.contains_key(key));
        if given[0] != given[1] {
            let message = format!("has one of {}; write both, or neither", listed(&pair));
            self.report(&place.of_key(), message);
        }
        let mut path = |key| self.value(section.get(key), value::path, PathBuf::new());
        let ca_file = path("caFile");
        let (cert_file, key_file) = (path("certFile"), path("keyFile"));
        let identity = Identity {
            cert_file,
            key_file,
        };
        Some(Tls {
            ca_file,
            identity: (given == [true; 2]).then_some(identity),
        })
    }
}
