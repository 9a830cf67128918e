//! The flags for an ensemble that is secured: the same as `registries[].auth` and `.tls` of the server.
//!
//! No secret is a flag, since other users see those: each is in a file or in an environment variable.

use std::path::PathBuf;

use crate::{
    commands::flags::Flags,
    config::value,
    zookeeper::security::{Auth, Identity, Login, Secret, Security, Tls},
};

#[derive(Debug, clap::Args)]
pub struct SecurityArgs {
    /// Log in for ACLs of the scheme `digest`; the password comes from one of the next two
    #[arg(long, value_name = "USER")]
    digest_user: Option<String>,

    /// The file that holds the password, read again when it changes
    #[arg(long, value_name = "FILE", requires = "digest_user")]
    digest_password_file: Option<PathBuf>,

    /// The environment variable that holds the password
    #[arg(
        long,
        value_name = "NAME",
        requires = "digest_user",
        conflicts_with = "digest_password_file"
    )]
    digest_password_variable: Option<String>,

    /// Log in by SASL (DIGEST-MD5); the password comes from one of the next two
    #[arg(long, value_name = "USER")]
    sasl_user: Option<String>,

    /// The file that holds the password, read again when it changes
    #[arg(long, value_name = "FILE", requires = "sasl_user")]
    sasl_password_file: Option<PathBuf>,

    /// The environment variable that holds the password
    #[arg(
        long,
        value_name = "NAME",
        requires = "sasl_user",
        conflicts_with = "sasl_password_file"
    )]
    sasl_password_variable: Option<String>,

    /// Speak TLS with servers whose certificates are signed by those in this PEM file
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// Our own certificate, as PEM, for servers that ask for one
    #[arg(long, value_name = "FILE", requires_all = ["tls_ca", "tls_key"])]
    tls_cert: Option<PathBuf>,

    /// The key of our certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl SecurityArgs {
    /// All files are read once, so that what cannot be used is told before anything begins.
    pub fn checked(&self, zookeeper: &str, flags: &mut Flags) -> Option<Security> {
        let digest = login(
            "--digest-user",
            self.digest_user.as_ref(),
            self.digest_password_file.as_ref(),
            self.digest_password_variable.as_ref(),
            flags,
        );
        let sasl = login(
            "--sasl-user",
            self.sasl_user.as_ref(),
            self.sasl_password_file.as_ref(),
            self.sasl_password_variable.as_ref(),
            flags,
        );
        let tls = self.tls();
        if tls.is_some() && value::connect(zookeeper).is_ok() {
            flags.check("--zookeeper", zookeeper, value::secure_connect);
        }
        let auth = Auth { digest, sasl };
        let security = Security { auth, tls };
        let unusable = security.check().err().unwrap_or_default();
        let good = unusable.is_empty();
        for unusable in unusable {
            flags.refuse(flag(unusable.key), unusable.message);
        }
        good.then_some(security)
    }

    fn tls(&self) -> Option<Tls> {
        let identity = self.tls_cert.clone().zip(self.tls_key.clone());
        Some(Tls {
            ca_file: self.tls_ca.clone()?,
            identity: identity.map(|(cert_file, key_file)| Identity {
                cert_file,
                key_file,
            }),
        })
    }
}

/// Nothing where no user is given; clap refuses a password without one.
fn login(
    flag: &'static str,
    user: Option<&String>,
    file: Option<&PathBuf>,
    variable: Option<&String>,
    flags: &mut Flags,
) -> Option<Login> {
    let user = flags.check_given(flag, user, value::user)?;
    let password = match (file, variable) {
        (Some(file), _) => Secret::File(file.clone()),
        (None, Some(name)) => Secret::Variable(name.clone()),
        (None, None) => {
            let password = flag.replace("-user", "-password");
            flags.refuse(
                flag,
                format!("has no password; give {password}-file or {password}-variable"),
            );
            return None;
        }
    };
    Some(Login { user, password })
}

/// The flag that stands for a key of the configuration.
fn flag(key: &str) -> &'static str {
    match key {
        "auth.digest" => "--digest-user",
        "auth.sasl" => "--sasl-user",
        "tls.caFile" => "--tls-ca",
        "tls.certFile" => "--tls-cert",
        _ => "--tls-key",
    }
}
