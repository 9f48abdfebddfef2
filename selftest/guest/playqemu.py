#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What pmemctl serve sees of QEMU, where the guest itself plays its host: playqemu.py DIR FILE ADDRESS

DIR/agent.sock is the port's: the agent (HostPort=DIR/port.sock) is behind it. DIR/qmp.sock tells of one region, with
FILE behind it, which this process has open.
"""

import contextlib
import json
import os
import select
import socket
import sys
import threading


def listen(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen(1)
    return listener


def relay(agents, hosts):
    """One host at a time; when it has left, the agent learns it."""
    while True:
        pair = [agents.accept()[0], hosts.accept()[0]]
        data = b"-"
        with contextlib.suppress(ConnectionError):
            while data:
                for source in select.select(pair, [], [])[0]:
                    data = data and source.recv(65536)
                    pair[source is pair[0]].sendall(data)
        for connection in pair:
            connection.close()


def tell(connection, message):
    connection.sendall(json.dumps(message).encode() + b"\n")


def monitor(listener, path, address):
    properties = {"mem-path": path, "share": True, "pmem": False, "readonly": False}
    device = {"id": "vp0", "memdev": "/objects/m0", "memaddr": address, "size": os.path.getsize(path)}
    while True:
        connection = listener.accept()[0]
        with contextlib.suppress(ConnectionError), connection, connection.makefile("rb") as lines:
            tell(connection, {"QMP": {"version": {}, "capabilities": []}})
            for line in lines:
                asked = json.loads(line)
                answer = {"query-memory-devices": [{"type": "virtio-pmem", "data": device}],
                          "qom-get": properties.get(asked.get("arguments", {}).get("property"))}
                tell(connection, {"return": answer.get(asked["execute"], {}), "id": asked.get("id")})


def main():
    directory, path, address = sys.argv[1], sys.argv[2], int(sys.argv[3], 0)
    agents, hosts, monitors = (listen(f"{directory}/{name}.sock") for name in ("port", "agent", "qmp"))
    with open(path, "r+b"):
        threading.Thread(target=relay, args=(agents, hosts), daemon=True).start()
        print("ready", flush=True)
        monitor(monitors, path, address)


main()
