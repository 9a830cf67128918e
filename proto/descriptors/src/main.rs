//! Writes the descriptor set that the admin API and server reflection read messages with.
//!
//! The protos are those that ship inside the `envoy-types` crate which the main package is built
//! with, so that the set and the generated Rust types never disagree. Only the [`ROOTS`] and what
//! they import are taken; comments are left out. Run it after an update of `envoy-types`:
//! `cargo run --manifest-path proto/descriptors/Cargo.toml`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use prost::Message;
use protox::Compiler;

/// Folders of the crate's `proto/` that imports are relative to.
const INCLUDES: [&str; 7] = [
    "data-plane-api",
    "xds",
    "googleapis",
    "protoc-gen-validate",
    "cel-spec/proto",
    "client_model",
    "opentelemetry-proto",
];

/// What a rendered resource can hold, typed Anys included, and the services that are reflected.
const ROOTS: [&str; 32] = [
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/config/bootstrap/v3/bootstrap.proto",
    "envoy/extensions/clusters/aggregate/v3/cluster.proto",
    "envoy/extensions/common/matching/v3/extension_matcher.proto",
    "envoy/extensions/filters/common/matcher/action/v3/skip_action.proto",
    "envoy/extensions/filters/http/fault/v3/fault.proto",
    "envoy/extensions/filters/http/header_mutation/v3/header_mutation.proto",
    "envoy/extensions/filters/http/on_demand/v3/on_demand.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/http/header_formatters/preserve_case/v3/preserve_case.proto",
    "envoy/extensions/load_balancing_policies/client_side_weighted_round_robin/v3/client_side_weighted_round_robin.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/maglev/v3/maglev.proto",
    "envoy/extensions/load_balancing_policies/pick_first/v3/pick_first.proto",
    "envoy/extensions/load_balancing_policies/random/v3/random.proto",
    "envoy/extensions/load_balancing_policies/ring_hash/v3/ring_hash.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/load_balancing_policies/wrr_locality/v3/wrr_locality.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "envoy/service/cluster/v3/cds.proto",
    "envoy/service/discovery/v3/ads.proto",
    "envoy/service/endpoint/v3/eds.proto",
    "envoy/service/listener/v3/lds.proto",
    "envoy/service/load_stats/v3/lrs.proto",
    "envoy/service/route/v3/rds.proto",
    "envoy/service/status/v3/csds.proto",
    "envoy/type/matcher/v3/http_inputs.proto",
];

fn main() -> anyhow::Result<()> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let protos = envoy_types(&repository.join("Cargo.toml"))?;
    let mut compiler = Compiler::new(INCLUDES.map(|include| protos.join(include)))?;
    compiler.include_imports(true).include_source_info(false);
    compiler.open_files(ROOTS)?;
    let set = compiler.file_descriptor_set().encode_to_vec();
    let output = repository.join("src/resource/descriptors.bin");
    fs::write(&output, &set).with_context(|| format!("cannot write {}", output.display()))?;
    println!("{}: {} bytes", output.display(), set.len());
    Ok(())
}

/// The folder of protos of the `envoy-types` that `manifest` resolves to.
fn envoy_types(manifest: &Path) -> anyhow::Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(manifest)
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let package = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "envoy-types")
        .context("the package does not depend on envoy-types")?;
    let manifest = package["manifest_path"].as_str().context("no manifest_path")?;
    let protos = Path::new(manifest).with_file_name("proto");
    ensure!(protos.is_dir(), "{} is no folder", protos.display());
    Ok(protos)
}
