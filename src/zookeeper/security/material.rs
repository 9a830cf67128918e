//! Passwords, certificates and keys as they are now: read, checked, and made into what a session needs.
//!
//! Blocking: files may be on a network. It refuses to know when to read and what to do about a problem.
//! Invariant: [`Material`] is whole and usable as far as can be known without a server (the certificate
//! belongs to the key), or there is none; and it is never shown.

use std::{
    env, fmt,
    fs::{self, File},
    io::Read,
    path::Path,
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use zookeeper_client::{Client, Connector, SaslOptions, TlsCa, TlsCerts, TlsIdentity, TlsOptions};

use super::{Identity, Login, Secret, Security, Tls, Unusable};

/// Far over any bundle of certificates.
const FILE_LIMIT: u64 = 1 << 20;

/// What the files hold.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Material {
    digest: Option<Account>,
    sasl: Option<Account>,
    tls: Option<Pem>,
}

#[derive(Clone, PartialEq, Eq)]
struct Account {
    user: String,
    password: String,
}

#[derive(Clone, PartialEq, Eq)]
struct Pem {
    ca: String,
    identity: Option<PemIdentity>,
}

#[derive(Clone, PartialEq, Eq)]
struct PemIdentity {
    cert: String,
    key: String,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Material(…)")
    }
}

impl Material {
    /// Every problem at once.
    pub fn read(security: &Security) -> Result<Self, Vec<Unusable>> {
        let mut problems = Vec::new();
        let auth = &security.auth;
        let material = Self {
            digest: account("auth.digest", auth.digest.as_ref(), &mut problems),
            sasl: account("auth.sasl", auth.sasl.as_ref(), &mut problems),
            tls: (security.tls.as_ref()).and_then(|tls| pem(tls, &mut problems)),
        };
        if problems.is_empty() {
            Ok(material)
        } else {
            Err(problems)
        }
    }

    /// With what a session is opened.
    pub fn connector(&self) -> Result<Connector, zookeeper_client::Error> {
        let mut connector = Client::connector();
        if let Some(account) = &self.digest {
            let auth = format!("{}:{}", account.user, account.password);
            connector = connector.with_auth("digest", auth.as_bytes());
        }
        if let Some(account) = self.sasl.clone() {
            connector =
                connector.with_sasl(SaslOptions::digest_md5(account.user, account.password));
        }
        if let Some(pem) = &self.tls {
            provide_cryptography();
            let mut certs = TlsCerts::builder().with_ca(TlsCa::from_pem(&pem.ca)?);
            if let Some(PemIdentity { cert, key }) = &pem.identity {
                certs = certs.with_identity(TlsIdentity::from_pem(cert, key)?);
            }
            connector = connector.with_tls(TlsOptions::new().with_certs(certs.build()?));
        }
        Ok(connector)
    }

    /// For a look at what is wrong with a connection; `None` for plain TCP.
    pub fn tls(&self) -> Option<Arc<ClientConfig>> {
        self.tls.as_ref().and_then(|pem| pem.config().ok())
    }

    /// Who logs in by SASL.
    pub fn sasl_user(&self) -> Option<&str> {
        self.sasl.as_ref().map(|account| account.user.as_str())
    }
}

/// Another library may bring a second implementation along, between which rustls would not choose.
fn provide_cryptography() {
    // An error says that one was chosen before.
    let _ = aws_lc_rs::default_provider().install_default();
}

fn account(
    key: &'static str,
    login: Option<&Login>,
    problems: &mut Vec<Unusable>,
) -> Option<Account> {
    let login = login?;
    let read = match &login.password {
        Secret::File(path) => text(path).and_then(|text| {
            password(&text).map_err(|why| {
                format!("{} {why}; write the password alone into it", path.display())
            })
        }),
        Secret::Variable(name) => env::var(name)
            .map_err(|_| format!("the environment variable {name} is not set to a text; set it"))
            .and_then(|text| {
                password(&text).map_err(|why| {
                    format!("the environment variable {name} {why}; set it to the password")
                })
            }),
    };
    let user = login.user.clone();
    noted(key, read, problems).map(|password| Account { user, password })
}

/// Without the end of its line, which editors and `kubectl create secret` disagree about.
fn password(text: &str) -> Result<String, &'static str> {
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err("is empty");
    }
    if line.contains(char::is_control) {
        return Err("holds more than one line, or control characters");
    }
    Ok(line.to_owned())
}

fn pem(tls: &Tls, problems: &mut Vec<Unusable>) -> Option<Pem> {
    let ca = text(&tls.ca_file).and_then(|ca| checked_ca(&ca, &tls.ca_file).map(|()| ca));
    let ca = noted("tls.caFile", ca, problems);
    let Some(Identity {
        cert_file,
        key_file,
    }) = &tls.identity
    else {
        return Some(Pem {
            ca: ca?,
            identity: None,
        });
    };
    let cert = text(cert_file).and_then(|cert| {
        let path = cert_file.display();
        match certificates(&cert) {
            Ok(_) => Ok(cert),
            Err(why) => Err(format!(
                "{path} {why}; write the certificate as PEM, then those that signed it"
            )),
        }
    });
    let key = text(key_file).and_then(|key| match PrivateKeyDer::from_pem_slice(key.as_bytes()) {
        Ok(_) => Ok(key),
        Err(_) => Err(format!(
            "{} holds no private key as PEM without a pass phrase; write one",
            key_file.display()
        )),
    });
    let cert = noted("tls.certFile", cert, problems);
    let key = noted("tls.keyFile", key, problems);
    let (ca, cert, key) = (ca?, cert?, key?);
    let pem = Pem {
        ca,
        identity: Some(PemIdentity { cert, key }),
    };
    let fits = pem.config().map_err(|error| {
        format!(
            "{} does not go with the certificate in {} ({error}); write the key of that certificate",
            key_file.display(),
            cert_file.display()
        )
    });
    noted("tls.keyFile", fits, problems).map(|_| pem)
}

impl Pem {
    fn config(&self) -> Result<Arc<ClientConfig>, String> {
        provide_cryptography();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(&self.ca)?);
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let Some(PemIdentity { cert, key }) = &self.identity else {
            return Ok(builder.with_no_client_auth().into());
        };
        let key =
            PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| error.to_string())?;
        let config = builder.with_client_auth_cert(certificates(cert)?, key);
        config.map(Arc::new).map_err(|error| error.to_string())
    }
}

fn checked_ca(ca: &str, path: &Path) -> Result<(), String> {
    let told = |why: &str| {
        format!(
            "{} {why}; write the certificates that the ensemble's are signed by, as PEM",
            path.display()
        )
    };
    let (added, _) = RootCertStore::empty()
        .add_parsable_certificates(certificates(ca).map_err(|why| told(&why))?);
    if added == 0 {
        return Err(told("holds no certificate that can be trusted"));
    }
    TlsCa::from_pem(ca)
        .map(drop)
        .map_err(|error| told(&format!("cannot be used ({error})")))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if all.is_empty() => Err("holds no certificate".to_owned()),
        Ok(all) => Ok(all),
        Err(_) => Err("is broken PEM".to_owned()),
    }
}

fn text(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let cannot = |error| {
        format!("{shown} cannot be read: {error}; put the file there and let this process read it")
    };
    // What is no plain file may never end, or never begin.
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(format!("{shown} is no plain file; name one"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(FILE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(format!(
            "{shown} has more than {FILE_LIMIT} bytes; is it the right one?"
        ));
    }
    String::from_utf8(bytes).map_err(|_| {
        format!("{shown} is no text; write it as UTF-8 (certificates and keys as PEM)")
    })
}

fn noted<T>(key: &'static str, read: Result<T, String>, problems: &mut Vec<Unusable>) -> Option<T> {
    let noted = read.map_err(|message| problems.push(Unusable { key, message }));
    noted.ok()
}

#[cfg(test)]
mod tests;
