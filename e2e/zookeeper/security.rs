//! Ensembles that want to know who comes: digest ACLs, SASL that is enforced, TLS on both sides; and
//! passwords and certificates that are renewed while all goes on.

use std::{fs, path::PathBuf, time::Duration};

use meshkeeper::zookeeper::security::{Auth, Identity, Login, Secret, Security, Tls};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use zookeeper_client::{Acls, Client, CreateMode, SaslOptions};

use super::{
    Config, Mirror, PATIENCE, State, Status, Watcher, config, put, registration::registration,
    znodes,
};
use crate::support::{
    wait::until,
    zookeeper::{SHORT_SESSION, Setup, ZooKeeper, free_port},
};

const OUTDATED: &str = "meshkeeper_zookeeper_credentials_outdated";
const SESSIONS: &str = "meshkeeper_zookeeper_sessions_total";

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// As Kubernetes does it: whoever reads finds the old text or the new one.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(self.path("next"), text).unwrap();
        fs::rename(self.path("next"), &path).unwrap();
        path
    }

    fn login(&self, user: &str, password: &str) -> Login {
        Login {
            user: user.to_owned(),
            password: Secret::File(self.write("password", password)),
        }
    }
}

fn digest(login: Login) -> Security {
    Security {
        auth: Auth {
            digest: Some(login),
            sasl: None,
        },
        tls: None,
    }
}

fn sasl(login: Login) -> Security {
    Security {
        auth: Auth {
            digest: None,
            sasl: Some(login),
        },
        tls: None,
    }
}

fn secured(connect: &str, security: Security) -> Config {
    Config {
        security,
        session_timeout: SHORT_SESSION,
        ..config(connect, "/services")
    }
}

fn start(connect: &str, security: Security) -> Mirror {
    Mirror::start_as(secured(connect, security), |watcher| watcher)
}

/// Waits until the state names all of `parts`.
async fn until_told(mirror: &mut Mirror, parts: &[&str]) {
    let told = |state: &State| match &state.status {
        Status::Connecting { reason: Some(told) } | Status::Disconnected { reason: told } => {
            parts.iter().all(|part| told.contains(part))
        }
        _ => false,
    };
    mirror.until_state(&parts.join(" … "), told).await;
}

async fn until_metric(mirror: &Mirror, name: &str, is: &str) {
    until(&format!("{name} {is}"), async || {
        (mirror.metric(name) == is).then_some(())
    })
    .await;
}

async fn logged_in(server: &ZooKeeper, user: &str, password: &str) -> Client {
    let connector = Client::connector()
        .with_session_timeout(Duration::from_secs(30))
        .with_auth("digest", format!("{user}:{password}").as_bytes());
    connector.connect(&server.connect()).await.unwrap()
}

/// Only who created it may do anything with it.
async fn put_own(client: &Client, path: &str, data: &[u8]) {
    let own = CreateMode::Persistent.with_acls(Acls::creator_all());
    client.create(path, data, &own).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_one_user_alone_may_read_is_mirrored_as_that_user() {
    let server = ZooKeeper::start();
    let owner = logged_in(&server, "owner", "secret").await;
    for (path, data) in [("", ""), ("/orders", ""), ("/orders/i-1", "1")] {
        put_own(&owner, &format!("/services{path}"), data.as_bytes()).await;
    }
    let mut nobody = start(&server.connect(), Security::default());
    until_told(&mut nobody, &["may not list /services"]).await;

    let files = Files::new();
    let ways: [fn(Watcher) -> Watcher; 2] = [|watcher| watcher, Watcher::only_one_shot];
    for way in ways {
        let security = digest(files.login("owner", "secret\n"));
        let mut mirror = Mirror::start_as(secured(&server.connect(), security), way);
        let expected = znodes(&[("orders", ""), ("orders/i-1", "1")]);
        mirror.until_equal(&expected).await;

        // A password that the tree does not open to costs nothing while the old one does.
        files.write("password", "wrong");
        until_metric(&mirror, OUTDATED, "1").await;
        put_own(&owner, "/services/orders/i-2", b"2").await;
        let more = znodes(&[("orders", ""), ("orders/i-1", "1"), ("orders/i-2", "2")]);
        mirror.until_equal(&more).await;
        files.write("password", "secret");
        until_metric(&mirror, OUTDATED, "0").await;
        owner.delete("/services/orders/i-2", None).await.unwrap();
        mirror.until_equal(&expected).await;
        assert_eq!(mirror.deleted, ["orders/i-2"]);
        mirror.stop().await;
    }
    nobody.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_renewed_is_used_at_once_and_nothing_is_removed() {
    let server = ZooKeeper::start();
    let old = logged_in(&server, "mesh", "old").await;
    let new = logged_in(&server, "mesh", "new").await;
    let services = ["", "/orders", "/orders/i-1"].map(|path| format!("/services{path}"));
    for path in &services {
        put_own(&old, path, b"1").await;
    }
    let files = Files::new();
    let mut mirror = start(&server.connect(), digest(files.login("mesh", "old")));
    mirror.until("loaded", |m| m.completed == 1).await;

    // The znodes change hands; what was known of them stands.
    put_own(&new, "/probe", b"").await;
    let (theirs, _) = new.get_acl("/probe").await.unwrap();
    for path in services.iter().rev() {
        old.set_acl(path, &theirs, None).await.unwrap();
    }
    files.write("password", "new");
    until_metric(&mirror, SESSIONS, "2").await;
    mirror.until("compared again", |m| m.completed == 2).await;
    put_own(&new, "/services/orders/i-2", b"2").await;
    let more = |m: &Mirror| m.znodes.contains_key("orders/i-2");
    mirror.until("followed", more).await;
    assert!(mirror.deleted.is_empty(), "{:?}", mirror.deleted);
    assert_eq!(mirror.metric(OUTDATED), "0");
    mirror.stop().await;
}

/// A server that lets nobody in who does not log in by SASL.
fn sasl_server(files: &Files) -> ZooKeeper {
    let jaas = files.write(
        "jaas",
        "Server { org.apache.zookeeper.server.auth.DigestLoginModule required\n\
         user_mesh=\"secret\" user_orders=\"other\"; };\n",
    );
    ZooKeeper::start_as(Setup {
        config: "authProvider.sasl=org.apache.zookeeper.server.auth.SASLAuthenticationProvider\n\
                 enforce.auth.enabled=true\nenforce.auth.schemes=sasl\n"
            .to_owned(),
        java: vec![format!(
            "-Djava.security.auth.login.config={}",
            jaas.display()
        )],
        ..Setup::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_enforces_sasl_is_logged_in_to() {
    let files = Files::new();
    let server = sasl_server(&files);
    let sasl_client = Client::connector()
        .with_sasl(SaslOptions::digest_md5("mesh", "secret"))
        .with_session_timeout(Duration::from_secs(30));
    let client = sasl_client.connect(&server.connect()).await.unwrap();
    put(&client, "/services/orders/i-1", b"1").await;

    let mut nobody = start(&server.connect(), Security::default());
    until_told(&mut nobody, &["auth.sasl"]).await;
    let wrong = Files::new();
    let mut wrong = start(&server.connect(), sasl(wrong.login("mesh", "wrong")));
    until_told(&mut wrong, &["refuses the login of \"mesh\""]).await;

    let mut mirror = start(&server.connect(), sasl(files.login("mesh", "secret")));
    mirror.until("loaded", |m| m.completed == 1).await;
    let mut one_shot = Mirror::start_as(
        secured(&server.connect(), sasl(files.login("mesh", "secret"))),
        Watcher::only_one_shot,
    );
    one_shot.until("loaded", |m| m.completed == 1).await;

    // What registers logs in too; what it writes is its own, for all to read.
    let own = Files::new();
    let mut registration = registration(&server.connect(), b"2");
    registration.id = "i-2".to_owned();
    registration.security = sasl(own.login("orders", "other"));
    let (sender, mut registered) = watch::channel(false);
    let stop = CancellationToken::new();
    let held = meshkeeper::zookeeper::register::hold(registration, sender, stop.clone());
    let held = tokio::spawn(held);
    timeout(PATIENCE, registered.wait_for(|is| *is))
        .await
        .unwrap()
        .unwrap();
    let expected = znodes(&[("orders", ""), ("orders/i-1", "1"), ("orders/i-2", "2")]);
    mirror.until_equal(&expected).await;
    one_shot.until_equal(&expected).await;
    let changed = client.set_data("/services/orders/i-2", b"3", None).await;
    assert!(changed.is_err(), "it belongs to another user");
    stop.cancel();
    held.await.unwrap().unwrap();
    for mirror in [mirror, one_shot, nobody, wrong] {
        mirror.stop().await;
    }
}

/// Signs certificates of servers and clients.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Certificate and key.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        (signed.pem(), key.serialize_pem())
    }
}

/// Its secure port, besides the plain one.
fn tls_server(
    files: &Files,
    authority: &Authority,
    trusted: &str,
    client: &str,
) -> (ZooKeeper, u16) {
    let (cert, key) = authority.sign("127.0.0.1");
    let store = files.write("server.pem", &format!("{key}{cert}"));
    let trust = files.write("trusted.pem", trusted);
    let port = free_port();
    let config = format!(
        "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
         secureClientPort={port}\nsecureClientPortAddress=127.0.0.1\nssl.clientAuth={client}\n\
         ssl.keyStore.location={}\nssl.keyStore.type=PEM\n\
         ssl.trustStore.location={}\nssl.trustStore.type=PEM\n\
         ssl.hostnameVerification=false\nssl.clientHostnameVerification=false\n",
        store.display(),
        trust.display()
    );
    let setup = Setup {
        config,
        ..Setup::default()
    };
    (ZooKeeper::start_as(setup), port)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_renewed_is_shown_and_nothing_is_removed() {
    let files = Files::new();
    let [ours, next, foreign] = ["ours", "next", "foreign"].map(Authority::new);
    let trusted = format!("{}{}", ours.pem, next.pem);
    let (server, port) = tls_server(&files, &ours, &trusted, "need");
    let connect = format!("127.0.0.1:{port}");
    let client = server.client().await;
    put(&client, "/services/orders/i-1", b"1").await;

    let tls = |ca_file, identity| Security {
        tls: Some(Tls { ca_file, identity }),
        auth: Auth::default(),
    };
    let ca = files.write("ca.pem", &ours.pem);
    let show = |(cert, key): (String, String)| {
        files.write("key.pem", &key);
        files.write("cert.pem", &cert);
    };
    show(ours.sign("client"));
    let identity = Some(Identity {
        cert_file: files.path("cert.pem"),
        key_file: files.path("key.pem"),
    });
    let mut mirror = start(&connect, tls(ca.clone(), identity.clone()));
    mirror.until("loaded", |m| m.completed == 1).await;

    show(next.sign("client"));
    until_metric(&mirror, SESSIONS, "2").await;
    mirror.until("compared again", |m| m.completed == 2).await;
    put(&client, "/services/orders/i-2", b"2").await;
    let expected = znodes(&[("orders", ""), ("orders/i-1", "1"), ("orders/i-2", "2")]);
    mirror.until_equal(&expected).await;

    // What cannot be used, or is refused, leaves the one before in use.
    files.write("cert.pem", "no certificate");
    until_metric(&mirror, OUTDATED, "1").await;
    show(foreign.sign("client"));
    until_metric(&mirror, OUTDATED, "1").await;
    put(&client, "/services/orders/i-1", b"3").await;
    let expected = znodes(&[("orders", ""), ("orders/i-1", "3"), ("orders/i-2", "2")]);
    mirror.until_equal(&expected).await;
    show(ours.sign("client"));
    until_metric(&mirror, OUTDATED, "0").await;
    mirror.until("compared again", |m| m.completed == 3).await;
    assert!(mirror.deleted.is_empty(), "{:?}", mirror.deleted);
    assert_eq!(mirror.metric(SESSIONS), "3");
    mirror.stop().await;

    let other_ca = files.write("foreign.pem", &foreign.pem);
    for (connect, security, parts) in [
        (&connect, tls(ca.clone(), None), &["certificate"][..]),
        (
            &connect,
            tls(other_ca, identity),
            &["not signed by", "tls.caFile"],
        ),
        (&server.connect(), tls(ca, None), &["secureClientPort"]),
        (&connect, Security::default(), &["set tls.caFile"]),
    ] {
        let mut mirror = start(connect, security);
        until_told(&mut mirror, parts).await;
        mirror.stop().await;
    }
}
