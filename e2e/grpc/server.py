"""A gRPC C-core server that gets its listener over xDS and answers every call with its name.

    server.py NAME[=PORT]

gRPC itself reads GRPC_XDS_BOOTSTRAP. It prints {"backend": NAME, "port": PORT} once it was started; it
accepts connections when it has its listener.
"""

import json
import socket
import sys
from concurrent import futures

import grpc


class Name(grpc.GenericRpcHandler):
    """Answers whatever method is called."""

    def __init__(self, name):
        reply = name.encode()
        self._handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: reply)

    def service(self, handler_call_details):
        return self._handler


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def main(argument):
    name, _, port = argument.partition("=")
    port = int(port or 0) or free_port()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), xds=True)
    server.add_generic_rpc_handlers((Name(name),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print(json.dumps({"backend": name, "port": port}), flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
