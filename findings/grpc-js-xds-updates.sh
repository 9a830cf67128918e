#!/usr/bin/env bash
# Two surprises of grpc-js over xDS, on valid input: @grpc/grpc-js 1.14.7 with @grpc/grpc-js-xds 1.14.1.
#
# 1. Every update of a target makes it connect to all of its endpoints again, also when only the weight of
#    one locality changed. The configuration selector, an object that is new at each update, counts as one of
#    the options of a subchannel, so none of the existing subchannels matches. Old ones are closed by a sweep every 10 s.
# 2. A cluster that is left out of a state-of-the-world CDS response, as if deleted, and is there again in the
#    next one, stays "does not exist" for good. C-core, grpc-go and grpc-java take it again at once.
#
# Needs python3 with venv, and npm. Output seen:
#   connections to one endpoint after 5 updates of a weight: 6
#   cluster removed: Cluster resource orders does not exist
#   10 s after the cluster was there again: Cluster resource orders does not exist
# Exits non-zero if it behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    grpcio==1.85.1 xds-protos==1.85.0
npm install --silent --no-audit --no-fund --ignore-scripts @grpc/grpc-js@1.14.7 @grpc/grpc-js-xds@1.14.1

cat >client.js <<'JS'
const grpc = require("@grpc/grpc-js");
require("@grpc/grpc-js-xds").register();
const client = new grpc.Client("xds:///orders", grpc.credentials.createInsecure());
const same = (bytes) => bytes;
require("readline").createInterface({ input: process.stdin }).on("line", () =>
  client.makeUnaryRequest("/a.B/C", same, same, Buffer.alloc(0), new grpc.Metadata(),
    { deadline: Date.now() + 5000 }, (error) => console.log(error ? error.details : "ok")));
JS

cat >run.py <<'PY'
import json, os, queue, socket, subprocess, sys, threading, time
from concurrent import futures
import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import any_pb2, json_format
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2

CONFIG = "type.googleapis.com/envoy.config."
KINDS = {"lds": CONFIG + "listener.v3.Listener", "rds": CONFIG + "route.v3.RouteConfiguration",
         "cds": CONFIG + "cluster.v3.Cluster", "eds": CONFIG + "endpoint.v3.ClusterLoadAssignment"}
ADS = {"ads": {}, "resourceApiVersion": "V3"}


def packed(message):
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


class ControlPlane(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    """One client, one resource of each type."""

    def __init__(self):
        self.resources, self.version, self.stream, self.asked = {}, 0, None, set()

    def put(self, **resources):
        self.version += 1
        self.resources.update({KINDS[kind]: resource for kind, resource in resources.items()})
        for kind in resources:
            if KINDS[kind] in self.asked:
                self.send(KINDS[kind])

    def send(self, url):
        resource = self.resources[url]
        self.stream.put(discovery_pb2.DiscoveryResponse(
            type_url=url, version_info=str(self.version), nonce=f"{url}{self.version}",
            resources=[] if resource is None else [packed(resource)]))

    def StreamAggregatedResources(self, requests, context):
        self.stream = queue.Queue()

        def read():
            for request in requests:
                if request.HasField("error_detail"):
                    sys.exit(f"rejected: {request.error_detail.message}")
                if request.resource_names and request.type_url not in self.asked:
                    self.asked.add(request.type_url)
                    self.send(request.type_url)

        threading.Thread(target=read, daemon=True).start()
        while True:
            yield self.stream.get()


def assignment(weight, port):
    address = {"socketAddress": {"address": "127.0.0.1", "portValue": port}}
    return json_format.ParseDict({"clusterName": "orders", "endpoints": [{
        "locality": {"subZone": "a"}, "loadBalancingWeight": weight,
        "lbEndpoints": [{"endpoint": {"address": address}}]}]}, endpoint_pb2.ClusterLoadAssignment())


class Backend(grpc.GenericRpcHandler):
    def service(self, _):
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request)


backend = grpc.server(futures.ThreadPoolExecutor(4))
backend.add_generic_rpc_handlers((Backend(),))
target = backend.add_insecure_port("127.0.0.1:0")
backend.start()

accepted = 0
listening = socket.create_server(("127.0.0.1", 0))


def forward():
    global accepted
    while True:
        client, _ = listening.accept()
        accepted += 1
        server = socket.create_connection(("127.0.0.1", target))

        def copy(source, sink):
            try:
                while data := source.recv(65536):
                    sink.sendall(data)
            except OSError:
                pass

        for pair in ((client, server), (server, client)):
            threading.Thread(target=copy, args=pair, daemon=True).start()


threading.Thread(target=forward, daemon=True).start()
port = listening.getsockname()[1]

manager = http_connection_manager_pb2.HttpConnectionManager()
json_format.ParseDict({"rds": {"configSource": ADS, "routeConfigName": "orders"}}, manager)
router = manager.http_filters.add(name="router")
router.typed_config.Pack(router_pb2.Router())
listener = listener_pb2.Listener(name="orders")
listener.api_listener.api_listener.Pack(manager)
route = json_format.ParseDict({"name": "orders", "virtualHosts": [{"name": "orders", "domains": ["*"], "routes": [
    {"match": {"prefix": ""}, "route": {"cluster": "orders"}}]}]}, route_pb2.RouteConfiguration())
cluster = json_format.ParseDict({"name": "orders", "type": "EDS", "edsClusterConfig": {"edsConfig": ADS}},
                                cluster_pb2.Cluster())

plane = ControlPlane()
server = grpc.server(futures.ThreadPoolExecutor(4))
ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(plane, server)
uri = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
server.start()
plane.put(lds=listener, rds=route, cds=cluster, eds=assignment(1, port))
bootstrap = {"xds_servers": [{"server_uri": uri, "channel_creds": [{"type": "insecure"}]}],
             "node": {"id": "a", "locality": {}}}
client = subprocess.Popen(["node", "client.js"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env=dict(os.environ, GRPC_XDS_BOOTSTRAP_CONFIG=json.dumps(bootstrap)))


def call():
    client.stdin.write("\n")
    client.stdin.flush()
    return client.stdout.readline().strip()


assert call() == "ok"
assert accepted == 1, accepted
for weight in range(2, 7):
    plane.put(eds=assignment(weight, port))
    time.sleep(0.5)
    assert call() == "ok"
print("connections to one endpoint after 5 updates of a weight:", accepted)
assert accepted == 6, "other than it was"
plane.put(cds=None)
time.sleep(1)
removed = call()
print("cluster removed:", removed)
plane.put(cds=cluster, eds=assignment(7, port))
time.sleep(10)
again = call()
print("10 s after the cluster was there again:", again)
assert "does not exist" in removed and again == removed, "other than it was"
client.kill()
os._exit(0)
PY
venv/bin/python run.py
