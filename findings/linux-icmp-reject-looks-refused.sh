#!/usr/bin/env bash
# Linux 6.18, iptables 1.8.9 (Debian 12). Needs root, for a network namespace of its own.
#
# A connection attempt that a firewall rejects with `iptables -j REJECT` fails with ECONNREFUSED, as if the machine had
# answered that no program listens: REJECT sends ICMP "port unreachable" unless told otherwise. Only the socket's error queue
# (MSG_ERRQUEUE) tells the two apart. An IPv4 socket fills it unasked, an IPv6 socket only with IPV6_RECVERR.
#
# Seen:
#   127.0.0.1 nothing listens      ECONNREFUSED  error queue: empty
#   127.0.0.1 REJECT               ECONNREFUSED  error queue: an ICMP error
#   ::1       nothing listens      ECONNREFUSED  error queue: empty
#   ::1       REJECT               ECONNREFUSED  error queue: empty
#   ::1       REJECT, RECVERR set  ECONNREFUSED  error queue: an ICMP error
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -q iptables=1.8.9-2 libip4tc2 libip6tc2 libxtables12 libnetfilter-conntrack3 libnfnetlink0 libmnl0 libnftnl11 >/dev/null
for package in *.deb; do dpkg -x "$package" root; done
cat >probe.py <<'PY'
import errno, select, socket

IPV6_RECVERR, MSG_ERRQUEUE = 25, 0x2000


def probe(host, port, recverr=False):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    if recverr:
        s.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    s.connect_ex((host, port))
    poll = select.poll()
    poll.register(s, select.POLLOUT)
    poll.poll(2000)
    error = errno.errorcode[s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]
    try:
        s.recvmsg(100, 200, MSG_ERRQUEUE)
        queue = "an ICMP error"
    except BlockingIOError:
        queue = "empty"
    return error, queue


cases = [
    ("127.0.0.1 nothing listens", ("127.0.0.1", 80), "empty"),
    ("127.0.0.1 REJECT", ("127.0.0.1", 81), "an ICMP error"),
    ("::1       nothing listens", ("::1", 80), "empty"),
    ("::1       REJECT", ("::1", 81), "empty"),
    ("::1       REJECT, RECVERR set", ("::1", 81, True), "an ICMP error"),
]
for name, arguments, expected in cases:
    error, queue = probe(*arguments)
    print(f"{name:30} {error}  error queue: {queue}")
    assert (error, queue) == ("ECONNREFUSED", expected), "the behaviour changed"
PY
libraries=$(dirname "$(find root -name 'libxtables.so.12' | head -1)")
export LD_LIBRARY_PATH="$folder/$libraries" XTABLES_LIBDIR="$folder/$libraries/xtables"
export PATH="$folder/root/usr/sbin:$PATH"
unshare --net sh -ec '
  ip link set lo up
  iptables-nft -A INPUT -p tcp --dport 81 -j REJECT
  ip6tables-nft -A INPUT -p tcp --dport 81 -j REJECT
  exec python3 probe.py'
