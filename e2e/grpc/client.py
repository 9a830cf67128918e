"""A gRPC C-core client that a test steers over standard input; README.md beside it has the commands.

    client.py TARGET [CALLS]        (TARGET: xds:///orders, or 127.0.0.1:1234 without xDS)

gRPC itself reads GRPC_XDS_BOOTSTRAP. No generated code: an empty request, the backend's name in reply.
"""

import collections
import json
import sys
import threading
import time

import grpc

METHOD = "/meshkeeper.e2e.Backend/Name"
OUTSTANDING = 64
DEADLINE = 10.0


class Tally:
    """What came of a number of calls; callbacks of many threads add to it."""

    def __init__(self):
        self.began = time.monotonic()
        self.lock = threading.Lock()
        self.counts = collections.Counter()
        self.failures = collections.Counter()

    def add(self, call):
        with self.lock:
            if call.code() is grpc.StatusCode.OK:
                self.counts[call.result().decode()] += 1
            else:
                self.failures[f"{call.code().name}: {call.details()}"] += 1

    def report(self):
        with self.lock:
            return {
                "calls": self.counts.total() + self.failures.total(),
                "counts": dict(sorted(self.counts.items())),
                "failures": dict(sorted(self.failures.items())),
                "seconds": round(time.monotonic() - self.began, 3),
            }


class Client:
    def __init__(self, target):
        self.channel = grpc.insecure_channel(target)
        self.state = grpc.ChannelConnectivity.IDLE
        self.changed = threading.Condition()
        self.channel.subscribe(self._on_state, try_to_connect=True)
        self.method = self.channel.unary_unary(METHOD)
        self.traffic = None

    def _on_state(self, state):
        with self.changed:
            self.state = state
            self.changed.notify_all()

    def ready(self, seconds=30.0):
        with self.changed:
            is_ready = self.changed.wait_for(lambda: self.state is grpc.ChannelConnectivity.READY, float(seconds))
            return {"ready": is_ready, "state": self.state.name}

    def call(self, calls, outstanding=OUTSTANDING):
        calls, outstanding = int(calls), int(outstanding)
        remaining = iter(range(calls))
        return self._run(lambda: next(remaining, None) is not None, outstanding).report()

    def start(self, outstanding=1):
        """Calls without end, until `stop`."""
        if self.traffic:
            raise ValueError("traffic is running already")
        self.traffic = Traffic(self, int(outstanding))
        return {"started": True}

    def stop(self):
        if not self.traffic:
            raise ValueError("no traffic is running")
        traffic, self.traffic = self.traffic, None
        return traffic.stop()

    def _run(self, wants_more, outstanding, tally=None):
        tally = tally or Tally()
        slots = threading.Semaphore(outstanding)

        def done(call):
            tally.add(call)
            slots.release()

        while True:
            slots.acquire()
            if not wants_more():
                break
            self.method.future(b"", timeout=DEADLINE).add_done_callback(done)
        for _ in range(outstanding - 1):
            slots.acquire()
        return tally


class Traffic:
    """A thread that calls in the background; `stop` waits for the calls under way."""

    def __init__(self, client, outstanding):
        self.stopping = threading.Event()
        self.tally = Tally()
        self.thread = threading.Thread(
            target=lambda: client._run(lambda: not self.stopping.is_set(), outstanding, self.tally), daemon=True
        )
        self.thread.start()

    def stop(self):
        self.stopping.set()
        self.thread.join()
        return self.tally.report()


def answer(client, line):
    command, *arguments = line.split()
    commands = {"ready": client.ready, "call": client.call, "start": client.start, "stop": client.stop}
    try:
        return commands[command](*arguments)
    except (KeyError, TypeError, ValueError) as error:
        return {"error": f"{line.strip()}: {error!r}"}


def main(target, calls=None):
    client = Client(target)
    lines = sys.stdin if calls is None else [f"call {calls}"]
    for line in lines:
        if line.strip() == "quit":
            break
        if line.strip():
            print(json.dumps(answer(client, line)), flush=True)
    client.channel.close()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
