"""Writes registrations with kazoo, as told line by line; each line is answered by one.

    create PATH DATA    an ephemeral znode; with a number at its end where PATH ends in `_`. Answered with its path
    persist PATH DATA   a persistent one
    set PATH DATA
    delete PATH

DATA may have spaces, or be missing. At the end of its input it leaves, and its ephemeral znodes with it.
"""

import sys

from kazoo.client import KazooClient


def obey(client, line):
    verb, path, data = (line.split(" ", 2) + [""])[:3]
    data = data.encode()
    if verb in ("create", "persist"):
        sequence = path.endswith("_")
        return client.create(path, data, ephemeral=verb == "create", sequence=sequence, makepath=True)
    if verb == "set":
        client.set(path, data)
    elif verb == "delete":
        client.delete(path)
    else:
        raise ValueError(f"no such verb: {verb}")
    return path


def main():
    client = KazooClient(hosts=sys.argv[1], timeout=10)
    client.start(timeout=20)
    print("ready", flush=True)
    for line in sys.stdin:
        print("done", obey(client, line.rstrip("\n")), flush=True)
    client.stop()
    client.close()


main()
