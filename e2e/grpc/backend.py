"""A gRPC server for the end-to-end tests that answers every call with its own name.

    backend.py NAME[=PORT]…     (PORT 0, the default, takes a free one)

Any number of backends live in one process, each on a port of its own. For each it prints a line
{"backend": NAME, "port": PORT} once it listens. No generated code: bytes in, bytes out, any method.
SIGTERM or SIGINT ends it; calls under way are answered.
"""

import asyncio
import json
import signal
import sys

import grpc


class Name(grpc.GenericRpcHandler):
    """Answers whatever method is called."""

    def __init__(self, name):
        reply = name.encode()

        async def answer(_request, _context):
            return reply

        self._handler = grpc.unary_unary_rpc_method_handler(answer)

    def service(self, handler_call_details):
        return self._handler


async def start(name, port):
    # Without SO_REUSEPORT a taken port is an error, not a silent second listener.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Name(name),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(json.dumps({"backend": name, "port": bound}), flush=True)
    return server


async def main(arguments):
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    servers = []
    for argument in arguments:
        name, _, port = argument.partition("=")
        servers.append(await start(name, int(port or 0)))
    await stop.wait()
    await asyncio.gather(*(server.stop(grace=1) for server in servers))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        asyncio.run(main(sys.argv[1:]))
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"backend.py: {error}")
