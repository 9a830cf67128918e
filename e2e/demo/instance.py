"""A sample HTTP instance for the demo: answers every GET with its own name.

    instance.py PORT NAME…

HTTP/1.1 with keep-alive, so that a sidecar reuses its connections.
"""

import http.server
import sys


class Instance(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name = ""
    # Buffered, so that head and body leave at once: apart they wait for each other (Nagle, delayed ACK).
    wbufsize = -1

    def do_GET(self):
        body = f"{self.name}\n".encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments):
        """Requests are not worth a line each."""


class Server(http.server.ThreadingHTTPServer):
    # The default of 5 turns connections away when a sidecar opens many at once.
    request_queue_size = 128


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    Instance.name = " ".join(sys.argv[2:])
    try:
        Server(("127.0.0.1", int(sys.argv[1])), Instance).serve_forever()
    except OSError as error:
        sys.exit(f"instance.py: port {sys.argv[1]}: {error.strerror}")
