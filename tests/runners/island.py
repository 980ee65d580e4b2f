"""A network of hosts on this machine, each with its own addresses and ports, and a program on each.

Run as the first process of new namespaces (see `cluster.py`), of which everything here becomes part:
when this process ends, so does all that it started, and nothing is left of the network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute, NetNS

_BRIDGE = "lan"
_KEEPER = "hostname $1; echo made; exec sleep infinity"


@dataclass(frozen=True)
class Program:
    """What runs on a host.

    Attributes:
        host: Number of the host; 0 is where the island itself and everything that enters it is.
        command: With its arguments.
        environment: All of it.
        log: Gets what it prints.
    """

    host: int
    command: list[str]
    environment: dict[str, str]
    log: str


def address(host: int) -> str:
    """Of a host."""
    return f"10.77.0.{host + 1}"


def run(programs: list[Program]) -> None:
    """Starts the hosts and the programs on them, and ends with what is at the other end of stdin."""
    _make_bridge()
    pids = {host: _make_host(host) for host in sorted({p.host for p in programs} - {0})}
    for program in programs:
        enter = _enter(pids[program.host]) if program.host else []
        with Path(program.log).open("wb") as log:
            subprocess.Popen(
                [*enter, *program.command],
                env=program.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    print("ready", flush=True)
    sys.stdin.read()


def _enter(keeper: int) -> list[str]:
    """How a command is run on the host of a process."""
    return ["nsenter", f"--target={keeper}", "--net", "--uts"]


def _make_bridge() -> None:
    with IPRoute() as net:
        net.link("add", ifname=_BRIDGE, kind="bridge")
        _bring_up(net, "lo", None)
        _bring_up(net, _BRIDGE, address(0))


def _make_host(host: int) -> int:
    """The process that holds a host's namespace, which is joined to the bridge."""
    keeper = subprocess.Popen(
        ["unshare", "--net", "--uts", "sh", "-c", _KEEPER, "sh", f"host{host}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == b"made\n"
    port = f"port{host}"
    with IPRoute() as net:
        peer = {"ifname": "eth0", "net_ns_pid": keeper.pid}
        net.link("add", ifname=port, kind="veth", peer=peer)
        index = net.link_lookup(ifname=port)[0]
        net.link("set", index=index, master=net.link_lookup(ifname=_BRIDGE)[0], state="up")
    with NetNS(f"/proc/{keeper.pid}/ns/net") as net:
        _bring_up(net, "lo", None)
        _bring_up(net, "eth0", address(host))
    return keeper.pid


def _bring_up(net: IPRoute, name: str, place: str | None) -> None:
    index = net.link_lookup(ifname=name)[0]
    if place:
        net.addr("add", index=index, address=place, prefixlen=24)
    net.link("set", index=index, state="up")


if __name__ == "__main__":
    run([Program(**program) for program in json.loads(sys.argv[1])])
