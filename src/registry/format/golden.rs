//! Golden pairs: `testdata/FORMAT/CASE.in` holds a znode's bytes, `CASE.out` what they decode to; `CASE.name`
//! holds its name where that matters, in one line, and is `i-1` elsewhere.
//!
//! The folder names the format that must be recognised. `MESHKEEPER_BLESS=1` rewrites the `.out`
//! files; read the difference before it is committed. A `captured-` case was written by the real
//! libraries from made-up values: Curator 5.7.1 and 5.9.0, Spring Cloud ZooKeeper 4.1.0 and 4.3.0, Dubbo 3.2.0 and 3.3.5,
//! Finagle 24.2.0 (`ServerSetImpl`), kazoo 2.11.0. Curator's serializer writes `enabled` only out of
//! its compatible mode, which is on unless told otherwise. Nerve's are by its documented form.

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

pub(super) struct Case {
    /// Its format's folder.
    folder: String,
    path: PathBuf,
    pub(super) name: String,
    pub(super) data: Vec<u8>,
}

impl Case {
    fn read(folder: &str, path: PathBuf) -> Self {
        let name = fs::read_to_string(path.with_extension("name"));
        Self {
            folder: folder.to_owned(),
            name: name.map_or("i-1".to_owned(), |name| name.trim_end().to_owned()),
            data: fs::read(&path).unwrap(),
            path,
        }
    }

    fn znode(&self) -> Znode<'_> {
        Znode::new(&self.name, &self.data, Stat::default())
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for folder in entries(&testdata()) {
        let format = folder.file_name().unwrap().to_str().unwrap().to_owned();
        for path in entries(&folder) {
            match path.extension().and_then(|e| e.to_str()) {
                Some("in") => cases.push(Case::read(&format, path)),
                Some("out" | "name") => {
                    assert!(path.with_extension("in").exists(), "{}", path.display());
                }
                _ => panic!("{} is neither .in nor .out nor .name", path.display()),
            }
        }
        let has_cases = cases.last().is_some_and(|case| case.folder == format);
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
fn every_znode_decodes_to_what_stands_beside_it() {
    let bless = env::var_os("MESHKEEPER_BLESS").is_some();
    for case in cases() {
        let found = readable(&FormatChoice::Auto.decode(&case.znode()));
        let text = format!("{found:#}\n");
        let out = case.path.with_extension("out");
        if bless {
            fs::write(&out, &text).unwrap();
        }
        let expected = fs::read_to_string(&out).unwrap_or_default();
        assert_eq!(text, expected, "{}", case.path.display());
        let folder = case.folder.as_str();
        assert_eq!(found["format"], folder, "{}", case.path.display());
    }
}

#[test]
fn a_fixed_format_decodes_what_auto_does() {
    for case in cases() {
        let fixed = match case.folder.as_str() {
            "auto" => continue,
            "json" => FormatChoice::Plain,
            folder => folder.parse().unwrap(),
        };
        let outcome = FormatChoice::Auto.decode(&case.znode());
        let fixed = fixed.decode(&case.znode());
        assert_eq!(fixed, outcome, "{}", case.path.display());
    }
}

#[test]
#[should_panic(expected = "is empty")]
fn an_empty_folder_is_an_error() {
    entries(tempfile::tempdir().unwrap().path());
}
