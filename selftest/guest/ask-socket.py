#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks at the agent's socket for a flush of PATH, and prints the answer: its number, scope, basis and detail.

usage: ask-socket.py [--o-path] PATH [auto|file|file-data|filesystem|region]
       ask-socket.py --idle N    connect N times, print "connected", and stay until standard input ends
"""

import os
import socket
import struct
import sys

SOCKET = "/run/pmem-agent/socket"
SCOPES = ["auto", "file", "file-data", "filesystem", "region"]


def connect():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.connect(SOCKET)
    return s


def ask(path, scope, flags):
    fd = os.open(path, flags)
    s = connect()
    socket.send_fds(s, [struct.pack("=IIQIIQ32x", 1, 1, 42, SCOPES.index(scope), 0, 0)], [fd])
    reply = s.recv(513)
    if len(reply) != 512:
        sys.exit(f"no answer: {len(reply)} bytes")
    version, kind, number, answer, error, scope, basis, usec, n, _ = struct.unpack_from("=IIQIiIIQII", reply)
    detail = reply[-208:].split(b"\0")[0].decode()
    print(f"answer {answer} error {error} scope {SCOPES[scope]} basis {basis} regions {n} {detail}")
    sys.exit(0 if (version, kind, number) == (1, 1, 42) else f"version {version}, type {kind}, id {number}")


arguments = sys.argv[1:]
if arguments[0] == "--idle":
    connections = [connect() for _ in range(int(arguments[1]))]
    print("connected", flush=True)
    sys.stdin.read()
elif arguments[0] == "--o-path":
    ask(arguments[1], "file", os.O_PATH)
else:
    ask(arguments[0], (arguments + ["auto"])[1], os.O_RDONLY)
