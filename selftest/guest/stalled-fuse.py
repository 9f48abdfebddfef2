#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A FUSE filesystem with one file, /file, whose flush on close is never answered.

But for dbus-daemon: a file that stalls as it passes through stalls the whole bus, and no service on it can help that.

usage: stalled-fuse.py MOUNT_POINT; prints "ready" when mounted, and "stalled" when a flush stalls.
"""

import ctypes
import os
import struct
import sys

LOOKUP, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, OPENDIR = 1, 3, 14, 15, 18, 25, 26, 27
ROOT, FILE = 1, 2


def attributes(node):
    mode = 0o40755 if node == ROOT else 0o100644
    return struct.pack("<QQQQQQIIIIIIIIII", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(fd, unique, body=b"", error=0):
    os.write(fd, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)


def name_of(pid):
    with open(f"/proc/{pid}/comm") as comm:
        return comm.read().strip()


def serve(fd):
    while True:
        request = os.read(fd, 1 << 18)
        _, code, unique, node, _, _, pid = struct.unpack_from("<IIQQIII", request)
        if code == INIT:
            answer(fd, unique, struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, 0, 0, 0, 131072, 1, 0, 0, 0, *[0] * 7))
            print("ready", flush=True)
        elif code == LOOKUP:
            answer(fd, unique, struct.pack("<QQQQII", FILE, 0, 9, 9, 0, 0) + attributes(FILE))
        elif code == GETATTR:
            answer(fd, unique, struct.pack("<QII", 9, 0, 0) + attributes(node))
        elif code in (OPEN, OPENDIR):
            answer(fd, unique, struct.pack("<QII", 1, 0, 0))
        elif code == FLUSH and name_of(pid) == "dbus-daemon":
            answer(fd, unique)
        elif code == FLUSH:
            print("stalled", flush=True)
        elif code == RELEASE:
            answer(fd, unique)
        else:
            answer(fd, unique, error=38)


def main():
    os.makedirs(sys.argv[1], exist_ok=True)
    fd = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"stalled", sys.argv[1].encode(), b"fuse", 0, options) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    serve(fd)


main()
