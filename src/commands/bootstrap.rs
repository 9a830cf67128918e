//! `bootstrap`: what a client has to be started with so that it finds the control plane.
//!
//! Pure but for the printing. Invariant: the client takes the text as it is. Sources: Envoy's
//! `config.bootstrap.v3` and gRPC's A27 and A83 proposals.

use std::{net::IpAddr, process::ExitCode};

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::{flags::Flags, output};
use crate::{
    config::{Problems, value::host_port},
    resource::Profile,
};

const EXAMPLES: &str = "\
Envoy asks with delta ADS and waits for its first configuration before it reports to be ready, so
that it never serves an empty one. JSON is YAML too: Envoy takes the text from a .json or .yaml file.

Examples:
  meshkeeper bootstrap envoy --xds 127.0.0.1:15010 --node-id sidecar-1 --admin-port 15000 > envoy.json
  envoy -c envoy.json

  meshkeeper bootstrap grpc --xds mesh-a:15010 --xds mesh-b:15010 --node-id checkout-7 > grpc.json
  GRPC_XDS_BOOTSTRAP=grpc.json ./checkout";

/// The static cluster of the control plane.
const XDS_CLUSTER: &str = "meshkeeper-xds";

/// What the listener of a gRPC server is called; `%s` is the address that it listens at.
const SERVER_LISTENER_TEMPLATE: &str = "grpc/server?xds.resource.listening_address=%s";

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Print the bootstrap of a client, which the client takes as it is
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What kind of client
    #[arg(value_enum)]
    client: Client,

    /// The control plane's address, as the client reaches it; may be repeated: gRPC falls back to the
    /// next in this order, Envoy takes any of them
    #[arg(long, value_name = "HOST:PORT", required = true)]
    xds: Vec<String>,

    /// What the client calls itself; shown by `meshkeeper clients`
    #[arg(long, value_name = "ID")]
    node_id: String,

    /// The group of clients that it belongs to
    #[arg(long, value_name = "NAME", default_value = "mesh")]
    cluster: String,

    /// The zone that it runs in
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,

    /// Serve Envoy's own admin page at this port of 127.0.0.1
    #[arg(long, value_name = "PORT")]
    admin_port: Option<String>,

    /// Have Envoy report its requests, which the server shows as metrics by service
    #[arg(long)]
    load_reports: bool,

    /// Have Envoy start without any service and learn of each at its first request
    #[arg(long)]
    on_demand: bool,

    /// How it is written
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Json)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Client {
    /// An Envoy proxy
    Envoy,
    /// A program with gRPC's own xDS support
    Grpc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
    /// For Envoy only
    Yaml,
}

impl Args {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let bootstrap = self.checked()?.render(self.client);
        output::print(&match self.output {
            Format::Json => serde_json::to_string_pretty(&bootstrap)? + "\n",
            Format::Yaml => serde_yaml::to_string(&bootstrap)?,
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// Every flag is checked before any problem is told.
    fn checked(&self) -> Result<Bootstrap, Problems> {
        let mut flags = Flags::default();
        let xds: Vec<_> = self
            .xds
            .iter()
            .map(|text| flags.check("--xds", text, server))
            .collect();
        let xds = xds.into_iter().collect::<Option<Vec<_>>>();
        let id = flags.check("--node-id", &self.node_id, name);
        let cluster = flags.check("--cluster", &self.cluster, name);
        let zone = flags.check_given("--zone", self.zone.as_ref(), name);
        let admin_port = flags.check_given("--admin-port", self.admin_port.as_ref(), port);
        if self.client == Client::Grpc {
            if self.admin_port.is_some() {
                let message = "only Envoy has an admin page; leave it out for gRPC";
                flags.refuse("--admin-port", message);
            }
            if self.load_reports {
                let message = "gRPC reports what its clusters ask for; leave it out for gRPC";
                flags.refuse("--load-reports", message);
            }
            if self.on_demand {
                let message = "gRPC asks for what it dials anyway; leave it out for gRPC";
                flags.refuse("--on-demand", message);
            }
            if self.output == Format::Yaml {
                flags.refuse("--output", "gRPC reads JSON only; leave `yaml` out");
            }
        }
        let made = || {
            Some(Bootstrap {
                xds: xds?,
                id: id?,
                cluster: cluster?,
                zone,
                admin_port,
                load_reports: self.load_reports,
                on_demand: self.on_demand,
            })
        };
        let made = made();
        flags.finish(made)
    }
}

/// What a bootstrap is made of, checked.
#[derive(Debug)]
struct Bootstrap {
    /// The addresses of the control plane, the preferred first.
    xds: Vec<Server>,
    id: String,
    cluster: String,
    zone: Option<String>,
    admin_port: Option<u16>,
    load_reports: bool,
    on_demand: bool,
}

/// Where one server of the control plane listens.
#[derive(Debug)]
struct Server {
    /// An IPv6 address in brackets.
    host: String,
    port: u16,
}

impl Server {
    fn bare_host(&self) -> &str {
        self.host.trim_matches(['[', ']'])
    }
}

impl Bootstrap {
    fn render(&self, client: Client) -> Value {
        match client {
            Client::Envoy => self.envoy(),
            Client::Grpc => self.grpc(),
        }
    }

    fn envoy(&self) -> Value {
        let mut bootstrap = json!({
            "node": self.node(),
            "dynamic_resources": dynamic_resources(),
            "static_resources": {"clusters": [self.xds_cluster()]},
        });
        if let Some(port) = self.admin_port {
            bootstrap["admin"] = json!({"address": socket("127.0.0.1", port)});
        }
        if self.on_demand {
            bootstrap["node"]["metadata"] = json!({Profile::METADATA: {Profile::ON_DEMAND: true}});
        }
        if self.load_reports {
            bootstrap["cluster_manager"] = json!({"load_stats_config": load_stats_config()});
        }
        bootstrap
    }

    fn xds_cluster(&self) -> Value {
        let endpoint = |server: &Server| {
            let address = socket(server.bare_host(), server.port);
            json!({"endpoint": {"address": address}})
        };
        let endpoints: Vec<_> = self.xds.iter().map(endpoint).collect();
        let mut cluster = json!({
            "name": XDS_CLUSTER,
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {HTTP_OPTIONS: http2()},
            "load_assignment": {
                "cluster_name": XDS_CLUSTER,
                "endpoints": [{"lb_endpoints": endpoints}],
            },
        });
        let is_name = |server: &Server| server.bare_host().parse::<IpAddr>().is_err();
        if self.xds.iter().any(is_name) {
            cluster["type"] = json!("STRICT_DNS");
            // Whichever of IPv4 and IPv6 the control plane listens at.
            cluster["dns_lookup_family"] = json!("ALL");
        }
        cluster
    }

    fn grpc(&self) -> Value {
        let server = |server: &Server| {
            json!({
                "server_uri": format!("{}:{}", server.host, server.port),
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            })
        };
        json!({
            "xds_servers": self.xds.iter().map(server).collect::<Vec<_>>(),
            "node": self.node(),
            "server_listener_resource_name_template": SERVER_LISTENER_TEMPLATE,
        })
    }

    fn node(&self) -> Value {
        let mut node = Map::new();
        node.insert("id".into(), json!(self.id));
        node.insert("cluster".into(), json!(self.cluster));
        // grpc-js refuses a node without a locality, even an empty one.
        let zone = self
            .zone
            .as_ref()
            .map(|zone| ("zone".to_owned(), json!(zone)));
        node.insert("locality".into(), Value::Object(zone.into_iter().collect()));
        Value::Object(node)
    }
}

fn dynamic_resources() -> Value {
    // Nothing to give up for: an Envoy that started without its configuration would look ready.
    let ads = || json!({"resource_api_version": "V3", "ads": {}, "initial_fetch_timeout": "0s"});
    // By default Envoy waits up to 30 s before it tries again.
    let back_off = json!({"base_interval": "0.25s", "max_interval": "3s"});
    json!({
        "ads_config": {
            "api_type": "DELTA_GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": true,
            "grpc_services": [{"envoy_grpc": {
                "cluster_name": XDS_CLUSTER,
                "retry_policy": {"retry_back_off": back_off},
            }}],
        },
        "cds_config": ads(),
        "lds_config": ads(),
    })
}

fn load_stats_config() -> Value {
    json!({
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER}}],
    })
}

/// A control plane that vanished without a word is noticed within the sum of both times.
fn http2() -> Value {
    let keepalive = json!({"interval": "15s", "timeout": "5s"});
    json!({
        "@type": format!("type.googleapis.com/{HTTP_OPTIONS}"),
        "explicit_http_config": {"http2_protocol_options": {"connection_keepalive": keepalive}},
    })
}

fn socket(host: &str, port: u16) -> Value {
    json!({"socket_address": {"address": host, "port_value": port}})
}

fn server(text: &str) -> Result<Server, String> {
    host_port(text, 15010).map(|(host, port)| Server { host, port })
}

fn name(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("it is empty; write a name".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("it holds control characters; write a name without them".to_owned());
    }
    Ok(text.to_owned())
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!(
            "`{}` is no port; write a number from 1 to 65535",
            text.escape_debug()
        )),
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::{DescriptorPool, DynamicMessage};

    use super::*;
    use crate::resource::json::DESCRIPTOR_SET;

    fn server(host: &str) -> Server {
        Server {
            host: host.into(),
            port: 15010,
        }
    }

    fn bootstrap(host: &str) -> Bootstrap {
        Bootstrap {
            xds: vec![server(host)],
            id: "sidecar-1".into(),
            cluster: "mesh".into(),
            zone: Some("a".into()),
            admin_port: None,
            load_reports: false,
            on_demand: false,
        }
    }

    /// Fails on any field or enum value that Envoy does not know.
    fn as_envoy_reads_it(bootstrap: Value) -> DynamicMessage {
        let pool = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
        let descriptor = pool
            .get_message_by_name("envoy.config.bootstrap.v3.Bootstrap")
            .unwrap();
        DynamicMessage::deserialize(descriptor, bootstrap).unwrap()
    }

    #[test]
    fn envoy_knows_every_field() {
        for host in ["10.0.0.1", "[2001:db8::1]", "mesh.internal"] {
            let mut bootstrap = bootstrap(host);
            bootstrap.admin_port = Some(15000);
            bootstrap.load_reports = true;
            bootstrap.on_demand = true;
            as_envoy_reads_it(bootstrap.envoy());
        }
    }

    #[test]
    fn envoy_asks_with_delta_ads_and_waits_for_its_configuration() {
        let bootstrap = bootstrap("10.0.0.1").envoy();
        let dynamic = &bootstrap["dynamic_resources"];
        assert_eq!(dynamic["ads_config"]["api_type"], "DELTA_GRPC");
        assert_eq!(dynamic["cds_config"]["initial_fetch_timeout"], "0s");
        assert_eq!(dynamic["lds_config"]["initial_fetch_timeout"], "0s");
        assert!(bootstrap.get("admin").is_none());
        assert!(bootstrap.get("cluster_manager").is_none());
    }

    #[test]
    fn a_name_is_looked_up_and_an_ip_is_not() {
        for (host, kind, address) in [
            ("10.0.0.1", "STATIC", "10.0.0.1"),
            ("[2001:db8::1]", "STATIC", "2001:db8::1"),
            ("mesh.internal", "STRICT_DNS", "mesh.internal"),
        ] {
            let cluster = bootstrap(host).xds_cluster();
            assert_eq!(cluster["type"], kind, "{host}");
            let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0];
            assert_eq!(
                endpoint["endpoint"]["address"]["socket_address"]["address"],
                address
            );
        }
    }

    #[test]
    fn grpc_gets_the_server_and_its_node() {
        assert_eq!(
            bootstrap("[::1]").grpc(),
            json!({
                "xds_servers": [{
                    "server_uri": "[::1]:15010",
                    "channel_creds": [{"type": "insecure"}],
                    "server_features": ["xds_v3"],
                }],
                "node": {"id": "sidecar-1", "cluster": "mesh", "locality": {"zone": "a"}},
                "server_listener_resource_name_template":
                    "grpc/server?xds.resource.listening_address=%s",
            })
        );
    }

    #[test]
    fn several_servers_are_fallen_back_to_in_their_order() {
        let mut several = bootstrap("10.0.0.1");
        several
            .xds
            .extend([server("mesh.internal"), server("[::1]")]);
        let grpc = several.grpc();
        let uris = grpc["xds_servers"].as_array().unwrap();
        let uris: Vec<_> = uris.iter().map(|server| &server["server_uri"]).collect();
        assert_eq!(
            uris,
            ["10.0.0.1:15010", "mesh.internal:15010", "[::1]:15010"]
        );
        let cluster = several.xds_cluster();
        assert_eq!(cluster["type"], "STRICT_DNS");
        let endpoints = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"];
        assert_eq!(endpoints.as_array().unwrap().len(), 3);
        as_envoy_reads_it(several.envoy());
    }

    #[test]
    fn a_node_without_a_zone_has_an_empty_locality() {
        let mut without = bootstrap("a");
        without.zone = None;
        assert_eq!(without.grpc()["node"]["locality"], json!({}));
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let args = Args {
            client: Client::Grpc,
            xds: vec!["127.0.0.1:15010".into(), "nowhere".into()],
            node_id: " ".into(),
            cluster: "\n".into(),
            zone: Some(String::new()),
            admin_port: Some("0".into()),
            load_reports: true,
            on_demand: true,
            output: Format::Yaml,
        };
        let problems = args.checked().unwrap_err().to_string();
        let flags: Vec<_> = problems
            .lines()
            .filter_map(|line| line.split(':').next())
            .collect();
        assert_eq!(
            flags,
            [
                "--xds",
                "--node-id",
                "--cluster",
                "--zone",
                "--admin-port",
                "--admin-port",
                "--load-reports",
                "--on-demand",
                "--output"
            ]
        );
    }
}
