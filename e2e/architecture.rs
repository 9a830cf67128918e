//! The walls of the house, read from the sources: which module may name which, and which modules
//! know no socket, clock, lock or randomness. The picture is in `docs/architecture.md`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each module and the modules that it may name.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("resource", &[]),
    ("readiness", &[]),
    ("places", &[]),
    ("probe", &[]),
    ("resolve", &[]),
    ("shutdown", &[]),
    ("telemetry", &[]),
    ("registry", &["model"]),
    ("lint", &["model", "registry"]),
    ("snapshot", &["resource"]),
    ("state", &["model", "registry"]),
    ("translate", &["model", "resource"]),
    ("zookeeper", &["registry"]),
    (
        "publish",
        &["registry", "resolve", "snapshot", "state", "translate"],
    ),
    ("xds", &["places", "resource", "snapshot"]),
    (
        "admin",
        &[
            "model",
            "places",
            "readiness",
            "registry",
            "resource",
            "xds",
        ],
    ),
    ("config", &["registry", "translate", "zookeeper"]),
    (
        "app",
        &[
            "admin",
            "config",
            "places",
            "probe",
            "publish",
            "readiness",
            "registry",
            "resolve",
            "resource",
            "shutdown",
            "snapshot",
            "state",
            "telemetry",
            "translate",
            "xds",
            "zookeeper",
        ],
    ),
    (
        "commands",
        &[
            "app",
            "config",
            "lint",
            "model",
            "registry",
            "resource",
            "shutdown",
            "telemetry",
            "zookeeper",
        ],
    ),
    ("main", &["commands"]),
];

/// Modules without I/O, and the files of other modules that have none either.
const PURE: &[&str] = &[
    "lint",
    "model",
    "registry/catalog",
    "registry/format",
    "registry/catalog",
    "registry/guard",
    "registry/guarded",
    "registry/index",
    "registry/journal",
    "registry/layout",
    "registry/name",
    "registry/shape",
    "probe/schedule",
    "resolve/names",
    "resource",
    "snapshot",
    "state/codec",
    "state/recorder",
    "translate",
    "xds/age",
    "xds/delta",
    "xds/held",
    "xds/pace",
    "xds/request",
    "xds/sotw",
    "xds/stream",
    "xds/subscription",
    "zookeeper/tree",
];

/// What a module without I/O does not name.
const IMPURE: &[&str] = &[
    "async fn",
    ".await",
    "tokio",
    "std::env",
    "std::fs",
    "TcpStream",
    "TcpListener",
    "Mutex",
    "RwLock",
    "Instant::now",
    "SystemTime::now",
    "rand::",
    "println!",
];

struct Source {
    /// Relative to `src`, without the ending: `xds/stream`.
    name: String,
    /// Without comments and tests.
    code: String,
}

impl Source {
    fn module(&self) -> &str {
        self.name.split('/').next().unwrap()
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let sources: Vec<_> = files
        .iter()
        .map(|file| {
            let name = file.strip_prefix(&root).unwrap().with_extension("");
            let name = name.to_str().unwrap().to_owned();
            Source {
                name,
                code: without_tests(&fs::read_to_string(file).unwrap()),
            }
        })
        .collect();
    assert!(
        sources.len() > 20,
        "the sources are where they are looked for"
    );
    sources
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
}

/// Tests are at the foot of a file, or in files that a `#[cfg(test)]` line of their parent names.
fn without_tests(text: &str) -> String {
    let lines = text
        .lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"));
    let code = lines.map(|line| line.split("//").next().unwrap_or_default());
    code.collect::<Vec<_>>().join("\n")
}

/// The top-level modules that follow every `crate::`, also within braces.
fn named(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, head) in code.match_indices("crate::") {
        let rest = &code[at + head.len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(group_heads(group)),
            None => names.extend(first_word(rest)),
        }
    }
    names
}

/// The first words of the comma-separated parts of a group, up to its closing brace.
fn group_heads(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut parts = vec![String::new()];
    for letter in group.chars() {
        match letter {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => parts.push(String::new()),
            _ if depth == 0 => parts.last_mut().unwrap().push(letter),
            _ => {}
        }
    }
    parts
        .iter()
        .filter_map(|part| first_word(part.trim()))
        .collect()
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text
        .chars()
        .take_while(|c| c.is_ascii_lowercase() || *c == '_')
        .collect();
    (!word.is_empty()).then_some(word)
}

fn is_test_file(name: &str) -> bool {
    name.split('/')
        .any(|part| part == "conformance" || part == "tests")
}

#[test]
fn a_module_names_only_what_its_row_allows() {
    let mut wrong = Vec::new();
    for source in sources()
        .iter()
        .filter(|source| !is_test_file(&source.name))
    {
        if source.name == "lib" {
            continue;
        }
        let row = ARROWS.iter().find(|(module, _)| *module == source.module());
        let Some((module, allowed)) = row else {
            wrong.push(format!("src/{}.rs: the module has no row", source.name));
            continue;
        };
        for name in named(&source.code) {
            if name != *module && !allowed.contains(&name.as_str()) {
                wrong.push(format!("src/{}.rs names `{name}`", source.name));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that the picture does not have:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_arrows_have_no_circle() {
    let mut settled: BTreeSet<&str> = BTreeSet::new();
    while settled.len() < ARROWS.len() {
        let ready = ARROWS.iter().filter(|(module, needs)| {
            !settled.contains(module) && needs.iter().all(|need| settled.contains(need))
        });
        let ready: Vec<_> = ready.map(|(module, _)| *module).collect();
        assert!(!ready.is_empty(), "a circle, or a module without a row");
        settled.extend(ready);
    }
}

#[test]
fn a_module_without_io_names_no_socket_clock_or_lock() {
    let mut wrong = Vec::new();
    let mut read = 0;
    for source in sources()
        .iter()
        .filter(|source| !is_test_file(&source.name))
    {
        let below = |place: &&&str| {
            let rest = source.name.strip_prefix(**place);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if PURE.iter().find(below).is_none() {
            continue;
        }
        read += 1;
        for word in IMPURE.iter().filter(|word| source.code.contains(**word)) {
            wrong.push(format!("src/{}.rs has `{word}`", source.name));
        }
    }
    assert!(
        read >= PURE.len(),
        "every pure module is where it is looked for"
    );
    assert!(
        wrong.is_empty(),
        "I/O in a pure module:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_reader_of_arrows_sees_groups_and_paths() {
    let code = "use crate::{model::{A, B}, registry, xds::stream}; let x = crate::snapshot::Y;";
    let expected = ["model", "registry", "snapshot", "xds"];
    assert_eq!(
        named(code),
        expected.into_iter().map(str::to_owned).collect()
    );
}
