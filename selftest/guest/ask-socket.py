#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks at the agent's socket for a flush of PATH, and prints the answer: its number, scope, basis and detail.

usage: ask-socket.py [--o-path] PATH [auto|file|file-data|filesystem|region]
       ask-socket.py --often N PATH    N times, one after the other, and prints nothing
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


def exchange(s, fd, scope):
    socket.send_fds(s, [struct.pack("=IIQIIQ32x", 1, 1, 42, SCOPES.index(scope), 0, 0)], [fd])
    return s.recv(513)


def ask_often(path, n):
    fd, s = os.open(path, os.O_RDONLY), connect()
    for _ in range(n):
        if struct.unpack_from("=I", exchange(s, fd, "auto"), 16)[0] != 0:
            sys.exit(f"{path} is not durable")


def ask(path, scope, flags):
    fd = os.open(path, flags)
    reply = exchange(connect(), fd, scope)
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
elif arguments[0] == "--often":
    ask_often(arguments[2], int(arguments[1]))
elif arguments[0] == "--o-path":
    ask(arguments[1], "file", os.O_PATH)
else:
    ask(arguments[0], (arguments + ["auto"])[1], os.O_RDONLY)
