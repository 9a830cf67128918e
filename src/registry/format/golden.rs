//! Golden pairs: `testdata/FORMAT/CASE.in` holds a znode's bytes, `CASE.out` what they decode to.
//!
//! The folder names the format that must be recognised. `MESHKEEPER_BLESS=1` rewrites the `.out`
//! files; read the difference before it is committed. A `captured-` case was written by the real
//! libraries (Curator 5.7.1, Spring Cloud ZooKeeper 4.1.0, Dubbo 3.2.0) from made-up values. Curator's
//! serializer writes `enabled` only out of its compatible mode, which is on unless told otherwise.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::*;
use crate::registry::registration::{Decoded, Host};

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/registry/format/testdata")
}

/// The sorted entries of a folder, which must not be empty.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths
}

/// Every case: its format's folder, its file and its bytes.
pub(super) fn cases() -> Vec<(String, PathBuf, Vec<u8>)> {
    let mut cases = Vec::new();
    for folder in entries(&testdata()) {
        let format = folder.file_name().unwrap().to_str().unwrap().to_owned();
        for path in entries(&folder) {
            match path.extension().and_then(|e| e.to_str()) {
                Some("in") => cases.push((format.clone(), path.clone(), fs::read(&path).unwrap())),
                Some("out") => assert!(path.with_extension("in").exists(), "{}", path.display()),
                _ => panic!("{} is neither .in nor .out", path.display()),
            }
        }
        let has_cases = cases.last().is_some_and(|(of, ..)| *of == format);
        assert!(has_cases, "{} has no case", folder.display());
    }
    cases
}

fn readable(outcome: &Result<(&str, Registration), Rejected>) -> Value {
    match outcome {
        Ok((format, Registration::Instances(instances))) => json!({
            "format": format,
            "instances": instances.iter().map(instance).collect::<Vec<_>>(),
        }),
        Ok((format, Registration::Weights(factors))) => json!({
            "format": format,
            "weights": factors.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>(),
        }),
        Err(rejected) => json!({ "format": rejected.format, "rejected": rejected.reason }),
    }
}

fn instance(decoded: &Decoded) -> Value {
    json!({
        "part": decoded.part,
        "id": decoded.id,
        "host": match &decoded.host {
            Host::Ip(address) => address.to_string(),
            Host::Name(name) => format!("{name}, to be resolved"),
        },
        "port": decoded.port,
        "weight": decoded.weight,
        "warmUp": decoded.warm_up.map(|w| format!("{w:?}")),
        "zone": decoded.zone,
        "health": format!("{:?}", decoded.health),
        "metadata": decoded.metadata,
    })
}

#[test]
fn every_payload_decodes_to_what_stands_beside_it() {
    let bless = env::var_os("MESHKEEPER_BLESS").is_some();
    for (folder, path, data) in cases() {
        let znode = Znode::new("i-1", &data, Stat::default());
        let found = readable(&FormatChoice::Auto.decode(&znode));
        let text = format!("{found:#}\n");
        let out = path.with_extension("out");
        if bless {
            fs::write(&out, &text).unwrap();
        }
        let expected = fs::read_to_string(&out).unwrap_or_default();
        assert_eq!(text, expected, "{}", path.display());
        assert_eq!(found["format"], folder.as_str(), "{}", path.display());
    }
}

#[test]
fn a_fixed_format_decodes_what_auto_does() {
    for (folder, path, data) in cases() {
        let fixed = match folder.as_str() {
            "auto" => continue,
            "curator" => FormatChoice::Curator,
            _ => FormatChoice::Plain,
        };
        let znode = Znode::new("i-1", &data, Stat::default());
        let outcome = FormatChoice::Auto.decode(&znode);
        assert_eq!(fixed.decode(&znode), outcome, "{}", path.display());
    }
}

#[test]
#[should_panic(expected = "is empty")]
fn an_empty_folder_is_an_error() {
    entries(tempfile::tempdir().unwrap().path());
}
