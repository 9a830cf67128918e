//! How an ensemble is sure of us and we of it: digest ACLs, SASL (DIGEST-MD5), TLS and mutual TLS.
//!
//! Values only: where the secrets are, never what they are. [`material`] reads them; [`access`] opens
//! sessions with them and follows files that are renewed. It refuses to know what is read on a session.
//! Invariant: no secret is in a configuration, a log line, a `Debug` or an error. Files may be replaced at
//! any time, in any order: what cannot be used is told and the last that could be used stays in use.

pub(super) mod access;
pub(super) mod material;

use std::{fmt, path::PathBuf};

use serde::Serialize;

use self::material::Material;

/// Whom to be and whom to trust. The default is nobody, over plain TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Security {
    #[serde(skip_serializing_if = "Auth::is_none")]
    pub auth: Auth,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// The identities of a session; both may be had at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// For ACLs of the scheme `digest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Login>,
    /// SASL with DIGEST-MD5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sasl: Option<Login>,
}

impl Auth {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Login {
    pub user: String,
    #[serde(flatten)]
    pub password: Secret,
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Secret {
    /// A file that holds nothing else; the end of its line does not count.
    #[serde(rename = "passwordFile")]
    File(PathBuf),
    /// An environment variable.
    #[serde(rename = "passwordVariable")]
    Variable(String),
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Certificates that the ensemble's must be signed by.
    pub ca_file: PathBuf,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// What we show to an ensemble that asks for a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// A file or variable that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// Where it is named: `tls.caFile`.
    pub key: &'static str,
    /// Names the file, what is wrong, and the remedy.
    pub message: String,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

impl Security {
    /// Reads everything once; all that cannot be used.
    pub fn check(&self) -> Result<(), Vec<Unusable>> {
        Material::read(self).map(drop)
    }

    /// Whether there is anything that may be renewed while we run.
    fn has_files(&self) -> bool {
        let of_file = |login: &Option<Login>| matches!(login, Some(login) if matches!(login.password, Secret::File(_)));
        self.tls.is_some() || of_file(&self.auth.digest) || of_file(&self.auth.sasl)
    }
}
