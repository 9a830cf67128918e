use std::path::PathBuf;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use super::*;
use crate::zookeeper::security::Auth;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

fn certificate() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["zk-1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn sasl(password: Secret) -> Security {
    let user = "meshkeeper".to_owned();
    let auth = Auth {
        sasl: Some(Login { user, password }),
        digest: None,
    };
    Security { auth, tls: None }
}

fn tls(ca_file: PathBuf, identity: Option<(PathBuf, PathBuf)>) -> Security {
    let identity = identity.map(|(cert_file, key_file)| Identity {
        cert_file,
        key_file,
    });
    Security {
        tls: Some(Tls { ca_file, identity }),
        ..Security::default()
    }
}

fn problems(security: &Security) -> Vec<String> {
    let problems = security.check().unwrap_err();
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_password_ends_before_the_end_of_its_line() {
    for (text, is) in [
        ("secret", "secret"),
        ("secret\n", "secret"),
        ("a b\r\n", "a b"),
    ] {
        assert_eq!(password(text).as_deref(), Ok(is));
    }
    for bad in ["", "\n", "one\ntwo", "nul\0"] {
        assert!(password(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn what_cannot_be_used_is_told_by_file_with_a_remedy() {
    let folder = Folder::new();
    let absent = folder.0.path().join("absent");
    for (secret, parts) in [
        (
            Secret::File(absent.clone()),
            ["absent", "put the file there"],
        ),
        (
            Secret::File(folder.0.path().into()),
            ["plain file", "name one"],
        ),
        (Secret::File(folder.write("empty", "")), ["empty", "alone"]),
        (
            Secret::File(folder.write("binary", [0xff])),
            ["binary", "UTF-8"],
        ),
        (
            Secret::File(folder.write("big", "x".repeat(2 << 20))),
            ["big", "right one"],
        ),
        (
            Secret::Variable("MESHKEEPER_NO_SUCH".into()),
            ["MESHKEEPER_NO_SUCH", "set it"],
        ),
    ] {
        let told = problems(&sasl(secret));
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("auth.sasl: "), "{told:?}");
        assert!(parts.iter().all(|part| told[0].contains(part)), "{told:?}");
    }
}

#[test]
fn every_problem_of_tls_is_told_at_once() {
    let folder = Folder::new();
    let (cert, key) = certificate();
    let (other_cert, _) = certificate();
    let ca = folder.write("ca", &cert);
    let (cert, key) = (folder.write("cert", cert), folder.write("key", key));
    tls(ca.clone(), None).check().unwrap();
    tls(ca.clone(), Some((cert.clone(), key.clone())))
        .check()
        .unwrap();

    let junk = folder.write("junk", "no PEM");
    let broken = folder.write(
        "broken",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    );
    let told = problems(&tls(junk.clone(), Some((broken, junk))));
    let keys: Vec<_> = told
        .iter()
        .map(|told| told.split(':').next().unwrap())
        .collect();
    assert_eq!(keys, ["tls.caFile", "tls.certFile", "tls.keyFile"]);
    let told = problems(&tls(ca, Some((folder.write("other", other_cert), key))));
    assert!(told[0].contains("does not go with"), "{told:?}");
}

#[test]
fn a_secret_is_never_shown() {
    let folder = Folder::new();
    let security = sasl(Secret::File(folder.write("password", "hush")));
    let material = Material::read(&security).unwrap();
    let shown = format!(
        "{security:?} {material:?} {}",
        serde_json::to_string(&security).unwrap()
    );
    assert!(!shown.contains("hush"), "{shown}");
    assert!(shown.contains("passwordFile"), "{shown}");
}

#[test]
fn what_was_read_makes_a_connector() {
    let folder = Folder::new();
    let (cert, key) = certificate();
    let mut security = tls(
        folder.write("ca", &cert),
        Some((folder.write("cert", cert), folder.write("key", key))),
    );
    security.auth.digest = Some(Login {
        user: "meshkeeper".to_owned(),
        password: Secret::File(folder.write("password", "secret\n")),
    });
    let material = Material::read(&security).unwrap();
    assert!(material.connector().is_ok() && material.tls().is_some());
}
