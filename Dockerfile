# syntax=docker/dockerfile:1
# The server alone on a distroless base: no shell, no package manager, no root.
#   docker build --tag meshkeeper .

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src

# The dependencies in a layer of their own, which holds until Cargo.toml or Cargo.lock changes: Cargo
# builds them for an empty program. Tests and benchmarks are not in the context, but the manifest names them.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src e2e benches/rig \
    && echo 'fn main() {}' >src/main.rs \
    && cp src/main.rs e2e/main.rs \
    && cp src/main.rs benches/rig/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked \
    && rm -r src

COPY . .
# The sources may be older than the empty program: newer, so that Cargo sees that they changed.
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked --bin meshkeeper

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="MeshKeeper" \
      org.opencontainers.image.description="Turns ZooKeeper registrations into live configuration for Envoy and gRPC" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/target/release/meshkeeper /usr/local/bin/meshkeeper
COPY --from=build /src/LICENSE /LICENSE
# The number of distroless's nonroot: Kubernetes' runAsNonRoot accepts no name.
USER 65532:65532

# 15010 discovery services, 15014 health, metrics and API
EXPOSE 15010 15014

# The image has no shell and no curl: the program asks itself. Only whether it lives: one that waits for
# ZooKeeper is not ready, and restarting it would not help.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["/usr/local/bin/meshkeeper", "ready", "--live", "--admin", "127.0.0.1:15014"]

STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/meshkeeper"]
CMD ["serve"]
