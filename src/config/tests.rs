use std::io::Write;

use proptest::prelude::*;

use super::*;

const FULL: &str = r#"# A comment.
registries:
  - name: main
    connect: 127.0.0.1:2181
    root: /services
    format: auto
    sessionTimeout: 10s
xds:
  listen: 0.0.0.0:15010
  maxStreams: 20000
  maxNames: 100000
  maxRequestBytes: 67108864
  newStreamsPerSecond: 4000
  maxStreamAge: 30m
admin: { listen: "127.0.0.1:15014", hosts: [] }
mesh:
  outboundListen: 127.0.0.1:15001
  domainSuffix: mesh
  onDemand: false
  loadBalancing: weightedRandom
guard: { enabled: true, window: 10s, serviceShare: 0.5, registryShare: 0.3, minimum: 5, holdFor: 1h, degraded: false, probe: true }
state: { wait: 5s }
"#;

fn parse(text: &str) -> Result<Config, Problems> {
    resolve(Some(("m.yaml", text)), &Flags::default())
}

/// The only registry and the rest as by default.
fn defaults() -> Config {
    Config {
        registries: vec![Registry::default()],
        ..Config::default()
    }
}

/// One line for each problem.
fn problems(text: &str) -> Vec<String> {
    let problems = parse(text).expect_err("problems");
    problems.0.iter().map(ToString::to_string).collect()
}

fn assert_problem(text: &str, begin: &str, end: &str) {
    let problems = problems(text);
    assert!(
        problems
            .iter()
            .any(|p| p.starts_with(begin) && p.contains(end)),
        "{problems:#?}"
    );
    assert_eq!(problems.len(), 1, "{problems:#?}");
}

const SEVERAL: &str = r#"
registries:
  - name: old
    priority: 1
    required: false
    ttl: 30s
    layout: "*/*/*"
  - name: new
    services:
      include: ["com.foo.*"]
      exclude: ["*.internal"]
      rename:
        - { from: "com.foo.*", to: "*" }
    instances:
      networks: [10.0.0.0/8]
      metadata: { env: "prod*" }
      keys: { weight: w, zone: az, version: build, health: state }
"#;

#[test]
fn registries_say_what_is_served_and_how_and_print_as_they_are_read() {
    let config = parse(SEVERAL).unwrap();
    assert_eq!(parse(&config.to_yaml()).unwrap(), config);
    let [old, new] = &config.registries[..] else {
        panic!("two registries");
    };
    assert_eq!((old.priority, old.required), (1, false));
    assert_eq!(old.ttl, Some(Duration::from_secs(30)));
    assert_eq!(old.layout.as_ref().unwrap().to_string(), "*/*/*");
    let shape = new.shape();
    assert!(shape.selects("com.foo.Bar") && !shape.selects("com.foo.internal"));
    assert_eq!(shape.rename("com.foo.Bar").as_deref(), Some("Bar"));
    assert_eq!(shape.keys.zone.as_deref(), Some("az"));
}

#[test]
fn registrations_live_longer_than_a_silent_connection() {
    let with = |keys: &str| format!("registries:\n- {{{keys}}}\n");
    let short = "ttl` (5s) is not over `sessionTimeout` (10s)";
    assert_problem(&with("ttl: 5s"), "m.yaml:2:9: registries[0].ttl: ", short);
    let equal = "ttl` (4s) is not over `sessionTimeout` (4s)";
    let keys = with("ttl: 4s, sessionTimeout: 4s");
    assert_problem(&keys, "m.yaml:2:9: registries[0].ttl: ", equal);
    assert!(parse(&with("ttl: 5s, sessionTimeout: 4s")).is_ok());
}

#[test]
fn what_is_wrong_with_a_selection_is_told_at_its_place() {
    let found = problems(
        "registries:\n- priority: 16\n  layout: x\n  services: {include: a, rename: [{from: a}, {from: a, to: '*'}]}\n  instances: {networks: [10/8], keys: {wheight: w}}\n",
    );
    let expected = [
        ("registries[0].priority: ", "0, the first choice, to 15"),
        ("registries[0].layout: ", "like */*"),
        ("registries[0].services.include: ", "a list"),
        ("registries[0].services.rename[0]: ", "has no `to`"),
        ("registries[0].services.rename[1]: ", "more stars"),
        ("registries[0].instances.networks[0]: ", "10.0.0.0/8"),
        (
            "registries[0].instances.keys.wheight: ",
            "did you mean `weight`",
        ),
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for ((place, remedy), problem) in expected.iter().zip(&found) {
        assert!(
            problem.contains(place) && problem.contains(remedy),
            "{problem}"
        );
    }
}

#[test]
fn a_flag_for_one_registry_is_refused_where_there_are_several() {
    let flags = Flags {
        root: Some("/apps".to_owned()),
        ..Flags::default()
    };
    let problems = resolve(Some(("m.yaml", SEVERAL)), &flags).unwrap_err();
    assert!(
        problems
            .to_string()
            .starts_with("--root: is for one registry"),
        "{problems}"
    );
}

#[test]
fn the_documented_file_equals_the_defaults() {
    assert_eq!(parse(FULL).unwrap(), defaults());
}

const SECURED: &str = "registries:
- connect: zk-1:2281
  auth:
    digest: {user: mesh, passwordFile: /run/secrets/zk}
    sasl: {user: mesh, passwordVariable: ZK_PASSWORD}
  tls: {caFile: ca.pem, certFile: cert.pem, keyFile: key.pem}
";

#[test]
fn a_secured_registry_names_where_its_secrets_are() {
    let config = parse(SECURED).unwrap();
    let security = &config.registries[0].security;
    assert!(security.auth.digest.is_some() && security.auth.sasl.is_some());
    assert!(security.tls.as_ref().unwrap().identity.is_some());
    let printed = config.to_yaml();
    assert_eq!(parse(&printed).unwrap(), config, "{printed}");
    let open = parse("registries: [{auth: , tls: {caFile: ca.pem}}]").unwrap();
    assert!(
        open.registries[0]
            .security
            .tls
            .as_ref()
            .unwrap()
            .identity
            .is_none()
    );
}

#[test]
fn half_of_a_login_or_of_a_certificate_is_a_problem() {
    for (part, key, says) in [
        ("auth: {digest: {user: a}}", "auth.digest", "neither"),
        ("auth: {digest: {passwordFile: a}}", "auth.digest", "`user`"),
        (
            "auth: {sasl: {user: a, passwordFile: a, passwordVariable: A}}",
            "auth.sasl",
            "both",
        ),
        (
            "auth: {sasl: {user: \"a:b\", passwordFile: a}}",
            "auth.sasl.user",
            "colon",
        ),
        (
            "auth: {digest: {user: a, password: b}}",
            "auth.digest",
            "passwordFile",
        ),
        ("tls: {certFile: a, keyFile: b}", "tls", "`caFile`"),
        ("tls: {caFile: a, certFile: b}", "tls", "certFile, keyFile"),
        ("tls: {caFile: \"\"}", "tls.caFile", "path"),
        ("tls: {caFile: a}, connect: \"zk 1:1\"", "connect", "blank"),
        (
            "tls: {caFile: a}, connect: \"-zk:1\"",
            "connect",
            "certificate",
        ),
    ] {
        let text = format!("registries: [{{{part}}}]");
        let problems = problems(&text);
        let named = |p: &&String| p.contains(&format!("registries[0].{key}")) && p.contains(says);
        assert!(problems.iter().any(|p| named(&p)), "{problems:#?}");
    }
}

#[test]
fn files_that_cannot_be_used_are_told_all_at_once() {
    let config = parse(&SECURED.replace("ZK_PASSWORD", "MESHKEEPER_NO_SUCH")).unwrap();
    let told = config.check_files().unwrap_err().to_string();
    for key in [
        "auth.digest",
        "auth.sasl",
        "tls.caFile",
        "tls.certFile",
        "tls.keyFile",
    ] {
        let line = format!("registry main: registries[0].{key}: ");
        assert!(told.contains(&line), "{told}");
    }
}

#[test]
fn an_empty_suffix_is_written_in_quotes() {
    assert_eq!(
        parse("mesh: {domainSuffix: \"\"}")
            .unwrap()
            .mesh
            .domain_suffix,
        ""
    );
    assert_problem(
        "mesh: {domainSuffix: }",
        "m.yaml:1:8: mesh.domainSuffix: ",
        "is empty",
    );
}

#[test]
fn on_demand_is_true_or_false() {
    assert!(parse("mesh: {onDemand: true}").unwrap().mesh.on_demand);
    for text in ["mesh: {onDemand: 'true'}", "mesh: {onDemand: 1}"] {
        assert_problem(
            text,
            "m.yaml:1:18: mesh.onDemand: ",
            "write `true` or `false`",
        );
    }
}

#[test]
fn nothing_at_all_gives_the_defaults() {
    for text in ["", "\n# nothing\n", "---\n", "xds:\nadmin:\nmesh:\n", "{}"] {
        assert_eq!(parse(text).unwrap(), defaults(), "{text:?}");
    }
    assert_eq!(load(None, &Flags::default()).unwrap(), defaults());
}

#[test]
fn the_effective_configuration_reads_back_as_itself() {
    let text = FULL.replace("10s", "1500ms").replace("15001", "15002");
    let config = parse(&text).unwrap();
    assert_ne!(config, defaults());
    assert_eq!(
        parse(&config.to_yaml()).unwrap(),
        config,
        "{}",
        config.to_yaml()
    );
}

#[test]
fn all_problems_are_told_at_once_with_line_and_key() {
    let text = "\
registries:
  - conect: 127.0.0.1:2181
    root: services
    format: xml
    sessionTimeout: 10
xds: { listen: \":15010\" }
admin: { listen: 15014 }
mesh:
  outboundListen: 127.0.0.1:0
  loadBalancing: [random]
  domainSuffix: Mesh
  domainSuffix: mesh
tls: {}
";
    let found = problems(text);
    let expected = [
        (
            "m.yaml:2:5: registries[0].conect: ",
            "did you mean `connect`?",
        ),
        ("m.yaml:3:11: registries[0].root: ", "/services"),
        (
            "m.yaml:4:13: registries[0].format: ",
            "auto, plain, curator, dubbo",
        ),
        ("m.yaml:5:21: registries[0].sessionTimeout: ", "write `10s`"),
        ("m.yaml:6:16: xds.listen: ", "`0.0.0.0:15010`"),
        ("m.yaml:7:18: admin.listen: ", "IP:PORT"),
        ("m.yaml:9:19: mesh.outboundListen: ", "port 0"),
        (
            "m.yaml:10:18: mesh.loadBalancing: ",
            "is a list; write text",
        ),
        ("m.yaml:11:17: mesh.domainSuffix: ", "lower-case"),
        ("m.yaml:12:3: mesh.domainSuffix: ", "second time"),
        (
            "m.yaml:13:1: tls: ",
            "known here: registries, dns, xds, admin, mesh",
        ),
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (problem, (begin, end)) in found.iter().zip(expected) {
        assert!(problem.starts_with(begin), "{problem} / {begin}");
        assert!(problem.contains(end), "{problem} / {end}");
    }
}

#[test]
fn limits_are_counts_and_an_age() {
    let text = "xds: {maxStreams: 5, maxNames: 6, maxRequestBytes: 9, newStreamsPerSecond: 7, maxStreamAge: 8m}";
    let xds = parse(text).unwrap().xds;
    assert_eq!((xds.max_streams, xds.max_names), (5, 6));
    assert_eq!(xds.max_request_bytes, 9);
    assert_eq!(xds.new_streams_per_second, 7);
    assert_eq!(xds.max_stream_age, Duration::from_secs(480));
    for (key, value, remedy) in [
        ("maxStreams", "0", "from 1 to"),
        ("maxNames", "-1", "from 1 to"),
        ("maxRequestBytes", "64MiB", "from 1 to"),
        ("newStreamsPerSecond", "[1]", "is a list; write text"),
        ("maxStreamAge", "1800", "write `1800s`"),
        ("maxStreamAge", "1ms", "from 1s to 168h"),
    ] {
        let text = format!("xds:\n  {key}: {value}\n");
        let place = format!("m.yaml:2:{}: xds.{key}: ", key.len() + 5);
        assert_problem(&text, &place, remedy);
    }
}

#[test]
fn the_guard_has_shares_and_times() {
    let config = parse("guard: {serviceShare: 1, registryShare: 0.25, holdFor: 10m}").unwrap();
    assert!((config.guard.service_share - 1.0).abs() < f64::EPSILON);
    assert_eq!(config.guard.hold_for, Duration::from_secs(600));
    for share in ["0", "1.1", "-0.5", "NaN", "inf", "half"] {
        assert_problem(
            &format!("guard:\n  serviceShare: {share}\n"),
            "m.yaml:2:17: guard.serviceShare: ",
            "write a number over 0",
        );
    }
    assert_eq!(config.guard.linger, Duration::from_secs(2));
    let none = parse("guard: {linger: 0s}").unwrap();
    assert_eq!(none.guard.linger, Duration::ZERO);
    assert_problem(
        "guard: {linger: 2m}",
        "m.yaml:1:17: guard.linger: ",
        "from 0ms to 1m",
    );
    assert_problem(
        "guard: {window: 0s}",
        "m.yaml:1:17: guard.window: ",
        "100ms",
    );
    assert_problem(
        "guard: {minimum: 0}",
        "m.yaml:1:18: guard.minimum: ",
        "from 1",
    );
}

#[test]
fn a_state_has_a_directory_if_it_has_one() {
    assert_eq!(parse("state: {}").unwrap().state.directory, None);
    let config = parse("state: {directory: /var/lib/meshkeeper, wait: 0s}").unwrap();
    assert_eq!(config.state.directory, Some("/var/lib/meshkeeper".into()));
    assert_eq!(parse(&config.to_yaml()).unwrap(), config);
    assert_problem(
        "state: {directory: ''}",
        "m.yaml:1:20: state.directory: ",
        "write a path",
    );
}

#[test]
fn a_key_in_another_spelling_is_recognized() {
    assert_problem(
        "registries: [{session_timeout: 10s}]",
        "m.yaml:1:15: registries[0].session_timeout",
        "`sessionTimeout`",
    );
    assert_problem("Mesh: {}", "m.yaml:1:1: Mesh", "`mesh`");
    assert_problem(
        "xds: {max_streams: 1}",
        "m.yaml:1:7: xds.max_streams",
        "`maxStreams`",
    );
}

#[test]
fn a_list_of_registries_has_one_at_least_and_each_name_once() {
    assert_problem("registries: []", "m.yaml:1:13: registries: ", "is empty");
    assert_problem("registries:", "m.yaml:1:1: registries: ", "a list");
    assert_problem(
        "registries: {name: a}",
        "m.yaml:1:13: registries: ",
        "begin each registry",
    );
    let twice = problems("registries:\n  - name: a\n  - name: a\n");
    assert!(
        twice
            .iter()
            .any(|p| p.contains("the name `a` of registries[0]")),
        "{twice:?}"
    );
}

#[test]
fn the_document_and_its_sections_are_mappings() {
    assert_problem(
        "just text",
        "m.yaml",
        "a mapping of registries, dns, xds, admin, mesh",
    );
    assert_problem("[1]", "m.yaml", "is a list");
    assert_problem(
        "xds: 0.0.0.0:15010",
        "m.yaml:1:6: xds: ",
        "a mapping of listen, maxStreams,",
    );
    assert_problem("xds: !tag {}", "m.yaml:1:6: xds: ", "tagged");
    assert_problem("registries: [x]", "m.yaml:1:14: registries[0]: ", "is text");
    assert_problem("xds: {listen: }", "m.yaml:1:7: xds.listen: ", "is empty");
}

#[test]
fn text_that_is_no_yaml_is_one_problem_with_its_place() {
    assert_problem("a: [", "m.yaml:", "is no valid YAML");
    assert_problem("\ta: b", "m.yaml:", "is no valid YAML");
    assert_problem("a: 1\n---\nb: 2\n", "m.yaml", "is no valid YAML");
    assert_problem(&"[".repeat(10_000), "m.yaml", "is no valid YAML");
}

#[test]
fn both_listeners_cannot_have_one_port() {
    assert_problem(
        "admin: {listen: 127.0.0.1:15010}",
        "m.yaml:1:17: admin.listen: ",
        "same port",
    );
    assert_problem(
        "xds: {listen: \"[::]:15014\"}",
        "m.yaml:1:15: xds.listen: ",
        "same port",
    );
    parse("xds: {listen: 127.0.0.2:15014}").unwrap();
    parse("xds: {listen: 127.0.0.1:0}\nadmin: {listen: 127.0.0.1:0}").unwrap();
}

#[test]
fn flags_win_over_the_file() {
    let flags = Flags {
        zookeeper: Some("zk:2181/mesh".into()),
        root: Some("/apps".into()),
        xds_listen: Some("127.0.0.1:1".into()),
        admin_listen: Some("127.0.0.1:2".into()),
    };
    let config = resolve(Some(("m.yaml", FULL)), &flags).unwrap();
    assert_eq!(config.registries[0].connect, "zk:2181/mesh");
    assert_eq!(config.registries[0].root, "/apps");
    assert_eq!(config.xds.listen.port(), 1);
    assert_eq!(config.admin.listen.port(), 2);
}

#[test]
fn problems_of_flags_name_the_flag_beside_those_of_the_file() {
    let flags = Flags {
        zookeeper: Some("zk:".into()),
        root: Some("apps".into()),
        xds_listen: Some("1".into()),
        admin_listen: Some("localhost:15014".into()),
    };
    let problems = resolve(Some(("m.yaml", "nope: 1")), &flags).unwrap_err();
    let text = problems.to_string();
    let begins: Vec<_> = text
        .lines()
        .filter_map(|line| line.split(": ").next())
        .collect();
    assert_eq!(
        begins,
        [
            "m.yaml:1:1",
            "--zookeeper",
            "--root",
            "--xds-listen",
            "--admin-listen"
        ]
    );
}

#[test]
fn a_flag_that_takes_the_other_port_is_blamed_itself() {
    let flags = Flags {
        admin_listen: Some("127.0.0.1:15010".into()),
        ..Flags::default()
    };
    let problems = resolve(None, &flags).unwrap_err();
    assert_eq!(problems.0[0].place, Place::Flag("--admin-listen"));
}

#[test]
fn a_flood_of_problems_is_cut_short() {
    let text: String = (0..5_000).fold(String::new(), |text, n| text + &format!("key{n}: 1\n"));
    let found = problems(&text);
    assert_eq!(found.len(), 101);
    assert_eq!(found[100], "m.yaml: and 4900 more problems");
}

#[test]
fn files_that_cannot_be_read_are_problems() {
    let missing = load(Some(Path::new("/no/such.yaml")), &Flags::default()).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("/no/such.yaml: cannot be read: ")
    );

    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"xds:\n  listen: \xff\n").unwrap();
    let bytes = load(Some(file.path()), &Flags::default()).unwrap_err();
    assert!(bytes.to_string().contains("line 2"), "{bytes}");

    file.as_file().set_len(FILE_LIMIT + 1).unwrap();
    let long = load(Some(file.path()), &Flags::default()).unwrap_err();
    assert!(long.to_string().contains("over the limit"), "{long}");
}

/// The full file with a few bytes replaced, dropped or doubled.
fn mutated() -> impl Strategy<Value = String> {
    let edit = (
        0..FULL.len(),
        0..3_u8,
        prop::sample::select(&b":-[]{}!&*#'\" \n\t~0a,"[..]),
    );
    prop::collection::vec(edit, 1..6).prop_map(|edits| {
        let mut bytes = FULL.as_bytes().to_vec();
        for (at, kind, byte) in edits {
            let at = at % bytes.len();
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[test]
fn admin_hosts_are_names_patterns_and_addresses_without_ports() {
    let hosts =
        r#"admin: {hosts: [Mesh.Example., "*.mesh.svc", "[2001:DB8::7]", "::ffff:10.0.0.7"]}"#;
    assert_eq!(
        parse(hosts).unwrap().admin.hosts,
        ["mesh.example", "*.mesh.svc", "2001:db8::7", "10.0.0.7"]
    );
    for bad in ["mesh.example:15014", "http://mesh.example", "a/b", "a b"] {
        let text = format!("admin: {{hosts: [\"{bad}\"]}}");
        assert_problem(&text, "m.yaml:1:17: admin.hosts[0]: ", "is not a host");
    }
}

#[test]
fn the_example_in_the_repository_is_the_defaults() {
    let example = include_str!("../../config/meshkeeper.yaml");
    assert_eq!(
        parse(example).unwrap(),
        resolve(None, &Flags::default()).unwrap()
    );
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_problems(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn a_mutated_file_is_a_configuration_that_reads_back_or_problems(text in mutated()) {
        match parse(&text) {
            Ok(config) => prop_assert_eq!(parse(&config.to_yaml()).unwrap(), config),
            Err(problems) => prop_assert!(!problems.0.is_empty()),
        }
    }

    #[test]
    fn any_flags_are_taken_or_named(text in any::<String>()) {
        let flags = Flags {
            zookeeper: Some(text.clone()),
            root: Some(text.clone()),
            xds_listen: Some(text.clone()),
            admin_listen: Some(text),
        };
        let _ = resolve(None, &flags);
    }
}
