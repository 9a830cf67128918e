//! Encoded messages as proto JSON, with the messages inside typed Anys written out.
//!
//! It refuses to know what the messages mean: all it has is the descriptor set beside it, which
//! `proto/descriptors` makes from the very protos that `envoy-types` is generated from.
//! Invariant: an Any that cannot be read costs itself only; it stays as base64 under `value`.
//! Source: the JSON mapping of the protobuf documentation.

use std::sync::LazyLock;

use base64::{Engine, prelude::BASE64_STANDARD};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    ReflectMessage, Value,
};
use serde_json::{Map, Value as Json, json};

/// The encoded `FileDescriptorSet`: also what server reflection tells.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!("descriptors.bin");

/// A message within an Any within an Any: deeper ones stay encoded.
const ANY_DEPTH: usize = 16;

static POOL: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTOR_SET).ok());

/// Why a message has no JSON.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no description of the message {0}")]
    Unknown(String),
    #[error("{type_url} cannot be decoded: {source}")]
    Decode {
        type_url: String,
        source: prost_reflect::prost::DecodeError,
    },
    #[error("{message} has no JSON form: {source}")]
    Render {
        message: String,
        source: serde_json::Error,
    },
}

/// The message that `bytes` encode; `type_url` as in an Any (`type.googleapis.com/NAME`).
pub fn message_json(type_url: &str, bytes: &[u8]) -> Result<Json, Error> {
    message(&decode(type_url, bytes)?, 0)
}

fn decode(type_url: &str, bytes: &[u8]) -> Result<DynamicMessage, Error> {
    let descriptor = descriptor(type_url).ok_or_else(|| Error::Unknown(type_url.to_owned()))?;
    DynamicMessage::decode(descriptor, bytes).map_err(|source| Error::Decode {
        type_url: type_url.to_owned(),
        source,
    })
}

fn descriptor(type_url: &str) -> Option<MessageDescriptor> {
    let (_, name) = type_url.rsplit_once('/')?;
    POOL.as_ref()?.get_message_by_name(name)
}

fn message(message: &DynamicMessage, depth: usize) -> Result<Json, Error> {
    let descriptor = message.descriptor();
    match descriptor.full_name() {
        "google.protobuf.Any" => Ok(any(message, depth)),
        name if has_json_of_its_own(name) => {
            serde_json::to_value(message).map_err(|source| Error::Render {
                message: name.to_owned(),
                source,
            })
        }
        _ => fields(message, depth).map(Json::Object),
    }
}

/// The well-known types whose JSON is no object of their fields.
fn has_json_of_its_own(name: &str) -> bool {
    let Some(name) = name.strip_prefix("google.protobuf.") else {
        return false;
    };
    name.ends_with("Value")
        || matches!(
            name,
            "Duration" | "Timestamp" | "Struct" | "FieldMask" | "Empty"
        )
}

fn fields(message: &DynamicMessage, depth: usize) -> Result<Map<String, Json>, Error> {
    message
        .fields()
        .map(|(field, value)| {
            Ok((
                field.json_name().to_owned(),
                field_value(&field, value, depth)?,
            ))
        })
        .collect()
}

fn field_value(field: &FieldDescriptor, value: &Value, depth: usize) -> Result<Json, Error> {
    match value {
        Value::List(items) => items
            .iter()
            .map(|item| single(&field.kind(), item, depth))
            .collect(),
        Value::Map(entries) => {
            let Kind::Message(entry) = field.kind() else {
                return Ok(Json::Null);
            };
            let kind = entry.map_entry_value_field().kind();
            entries
                .iter()
                .map(|(key, value)| Ok((key_text(key), single(&kind, value, depth)?)))
                .collect::<Result<Map<_, _>, Error>>()
                .map(Json::Object)
        }
        value => single(&field.kind(), value, depth),
    }
}

fn single(kind: &Kind, value: &Value, depth: usize) -> Result<Json, Error> {
    Ok(match value {
        Value::Bool(value) => json!(value),
        Value::I32(value) => json!(value),
        Value::U32(value) => json!(value),
        // 64 bits do not fit into the numbers of JavaScript, so the mapping makes them text.
        Value::I64(value) => json!(value.to_string()),
        Value::U64(value) => json!(value.to_string()),
        Value::F32(value) => float(f64::from(*value), json!(value)),
        Value::F64(value) => float(*value, json!(value)),
        Value::String(value) => json!(value),
        Value::Bytes(value) => json!(BASE64_STANDARD.encode(value)),
        Value::EnumNumber(number) => enumeration(kind, *number),
        Value::Message(inner) => message(inner, depth)?,
        Value::List(_) | Value::Map(_) => Json::Null,
    })
}

fn float(value: f64, finite: Json) -> Json {
    if value.is_finite() {
        finite
    } else if value.is_nan() {
        json!("NaN")
    } else if value > 0.0 {
        json!("Infinity")
    } else {
        json!("-Infinity")
    }
}

fn enumeration(kind: &Kind, number: i32) -> Json {
    let value = kind
        .as_enum()
        .and_then(|described| described.get_value(number));
    value.map_or_else(|| json!(number), |value| json!(value.name()))
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

fn any(any: &DynamicMessage, depth: usize) -> Json {
    let type_url = any.get_field_by_name("type_url");
    let type_url = type_url
        .as_ref()
        .and_then(|url| url.as_str())
        .unwrap_or_default();
    let value = any.get_field_by_name("value");
    let value = value
        .as_ref()
        .and_then(|bytes| bytes.as_bytes())
        .map_or(&[][..], |bytes| &bytes[..]);
    expanded(type_url, value, depth)
        .unwrap_or_else(|| json!({"@type": type_url, "value": BASE64_STANDARD.encode(value)}))
}

/// `None` for what cannot be read.
fn expanded(type_url: &str, value: &[u8], depth: usize) -> Option<Json> {
    if depth >= ANY_DEPTH {
        return None;
    }
    let inner = decode(type_url, value).ok()?;
    let name = inner.descriptor().full_name().to_owned();
    let rendered = message(&inner, depth + 1).ok()?;
    match rendered {
        Json::Object(mut fields) if !has_json_of_its_own(&name) => {
            if name == "google.protobuf.Any" {
                return Some(json!({"@type": type_url, "value": fields}));
            }
            fields.insert("@type".to_owned(), json!(type_url));
            Some(Json::Object(fields))
        }
        other => Some(json!({"@type": type_url, "value": other})),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::{
        envoy::{
            config::{
                cluster::v3::{Cluster, cluster},
                core::v3::{Metadata, TypedExtensionConfig},
                endpoint::v3::ClusterLoadAssignment,
                listener::v3::Listener,
            },
            extensions::load_balancing_policies::maglev::v3::Maglev,
        },
        google::protobuf::{Any, Duration, Struct, UInt64Value, Value, value},
    };
    use prost::Message;

    use super::*;
    use crate::resource::ResourceType;

    const MAGLEV: &str =
        "type.googleapis.com/envoy.extensions.load_balancing_policies.maglev.v3.Maglev";

    fn packed(type_url: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: type_url.into(),
            value,
        }
    }

    fn cluster_with(any: Any) -> Cluster {
        Cluster {
            name: "orders".into(),
            connect_timeout: Some(Duration {
                seconds: 1,
                nanos: 500_000_000,
            }),
            cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
                cluster::DiscoveryType::Eds.into(),
            )),
            typed_extension_protocol_options: [("options".to_owned(), any)].into(),
            ..Default::default()
        }
    }

    fn render(cluster: &Cluster) -> Json {
        message_json(ResourceType::Cluster.type_url(), &cluster.encode_to_vec()).unwrap()
    }

    #[test]
    fn every_resource_type_and_the_reflected_services_are_described() {
        for kind in ResourceType::ALL {
            assert!(descriptor(kind.type_url()).is_some(), "{kind:?}");
        }
        let pool = POOL.as_ref().unwrap();
        for service in [
            "envoy.service.discovery.v3.AggregatedDiscoveryService",
            "envoy.service.status.v3.ClientStatusDiscoveryService",
            "envoy.service.load_stats.v3.LoadReportingService",
        ] {
            assert!(pool.get_service_by_name(service).is_some(), "{service}");
        }
    }

    #[test]
    fn enums_durations_and_typed_anys_are_written_out() {
        let maglev = Maglev {
            table_size: Some(UInt64Value { value: 65_537 }),
            ..Default::default()
        };
        assert_eq!(
            render(&cluster_with(packed(MAGLEV, maglev.encode_to_vec()))),
            json!({
                "name": "orders",
                "type": "EDS",
                "connectTimeout": "1.500s",
                "typedExtensionProtocolOptions": {"options": {"@type": MAGLEV, "tableSize": "65537"}},
            })
        );
    }

    #[test]
    fn an_any_of_unknown_type_or_broken_content_stays_base64_and_costs_itself_only() {
        for any in [
            packed("type.googleapis.com/not.Known", vec![1, 2, 3]),
            packed("no slash", vec![1, 2, 3]),
            packed("", vec![1, 2, 3]),
            packed(MAGLEV, vec![1, 2, 3]),
        ] {
            let rendered = render(&cluster_with(any.clone()));
            assert_eq!(rendered["name"], "orders");
            assert_eq!(
                rendered["typedExtensionProtocolOptions"]["options"],
                json!({"@type": any.type_url, "value": "AQID"})
            );
        }
    }

    #[test]
    fn a_well_known_type_inside_an_any_is_under_value() {
        let url = "type.googleapis.com/google.protobuf.Duration";
        let second = Duration {
            seconds: 1,
            nanos: 0,
        };
        assert_eq!(
            render(&cluster_with(packed(url, second.encode_to_vec())))["typedExtensionProtocolOptions"]
                ["options"],
            json!({"@type": url, "value": "1s"})
        );
    }

    #[test]
    fn metadata_structs_keep_their_json_form() {
        let text = Value {
            kind: Some(value::Kind::StringValue("v2".into())),
        };
        let fields = Struct {
            fields: [("version".to_owned(), text)].into(),
        };
        let cluster = Cluster {
            metadata: Some(Metadata {
                filter_metadata: [("envoy.lb".to_owned(), fields)].into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(
            render(&cluster)["metadata"]["filterMetadata"],
            json!({"envoy.lb": {"version": "v2"}})
        );
    }

    #[test]
    fn anys_nested_without_end_stop_at_a_depth() {
        let url = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
        let mut any = packed(url, Vec::new());
        for _ in 0..200 {
            let nested = TypedExtensionConfig {
                name: String::new(),
                typed_config: Some(any),
            };
            any = packed(url, nested.encode_to_vec());
        }
        let text = render(&cluster_with(any)).to_string();
        assert_eq!(text.matches("@type").count(), ANY_DEPTH + 1);
    }

    #[test]
    fn bytes_that_are_no_message_are_an_error() {
        for kind in ResourceType::ALL {
            assert!(matches!(
                message_json(kind.type_url(), &[0xff, 0xff]),
                Err(Error::Decode { .. })
            ));
        }
        assert!(matches!(message_json("x/y", &[]), Err(Error::Unknown(_))));
    }

    #[test]
    fn equal_messages_have_equal_text_whatever_the_order_of_their_maps() {
        let entry = |n: usize| (format!("o{n}"), packed("type.googleapis.com/a.B", vec![7]));
        let texts: std::collections::BTreeSet<_> = (0..20)
            .map(|_| {
                let cluster = Cluster {
                    typed_extension_protocol_options: (0..20).map(entry).collect(),
                    ..Default::default()
                };
                render(&cluster).to_string()
            })
            .collect();
        assert_eq!(texts.len(), 1);
    }

    #[test]
    fn empty_messages_are_empty_objects() {
        for (kind, bytes) in [
            (
                ResourceType::Endpoint,
                ClusterLoadAssignment::default().encode_to_vec(),
            ),
            (ResourceType::Listener, Listener::default().encode_to_vec()),
        ] {
            assert_eq!(message_json(kind.type_url(), &bytes).unwrap(), json!({}));
        }
    }
}
