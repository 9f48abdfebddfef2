# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's end of the runner's port: frames as in guest/frame.h."""

import asyncio
import struct

from util import background

HEAD = struct.Struct("<III")
PART = 65536


class GuestPort:
    """Sends jobs, gives out their output, answers the requests of `vm`."""

    def __init__(self, on_request, on_output):
        self.on_request, self.on_output = on_request, on_output
        self.boot_id = None
        self.up = asyncio.Event()
        self.down = asyncio.Event()         # the guest was reset, or QEMU ended
        self.orderly = False                # and said before that it was going down
        self.reader = self.writer = None
        self.buffer = bytearray()
        self.requests, self.exits = {}, {}
        self.next_job = 1

    async def attach(self, sock):
        self.reset()
        await self.replace(sock)

    async def replace(self, sock):
        """The guest goes on in another machine, in the middle of whatever it was doing."""
        self.reader, self.writer = await asyncio.open_connection(sock=sock)
        background(self._read(self.reader, self.writer))

    def leave_machine(self):
        """Its end is not that of the guest."""
        self.reader = None

    def reset(self):
        """The guest starts anew: whatever was under way in it is gone."""
        self.up.clear()
        self.down.set()
        self.boot_id = None
        self.buffer.clear()
        for task in self.requests.values():
            task.cancel()
        self.requests.clear()
        for future in self.exits.values():
            if not future.done():
                future.set_result(None)
        self.exits.clear()

    async def _read(self, reader, writer):
        while data := await reader.read(65536):
            self.buffer += data
            if self.boot_id or self._find_hello():
                self._frames()
        writer.close()
        if reader is self.reader:
            self.reset()

    def _find_hello(self):
        start = self.buffer.find(b"\nhello ")
        end = self.buffer.find(b"\n", start + 1)
        if start < 0 or end < 0:
            return False
        self.boot_id = self.buffer[start + 7:end].decode()
        del self.buffer[:end + 1]
        self.orderly = False
        self.down.clear()
        self.writer.write(f"\nwelcome {self.boot_id}\n".encode())
        self.up.set()
        return True

    def _frames(self):
        while len(self.buffer) >= HEAD.size:
            kind, number, length = HEAD.unpack_from(self.buffer)
            if len(self.buffer) < HEAD.size + length:
                return
            payload = bytes(self.buffer[HEAD.size:HEAD.size + length])
            del self.buffer[:HEAD.size + length]
            self._take(chr(kind), number, payload)

    def _take(self, kind, number, payload):
        if kind == "O":
            self.on_output(payload)
        elif kind == "X":
            future = self.exits.pop(number, None)
            if future and not future.done():
                future.set_result(struct.unpack("<i", payload)[0])
        elif kind == "Q":
            words = payload.decode(errors="replace").split("\0")[:-1]
            self.requests[number] = background(self._answer(number, words))
        elif kind == "C":
            task = self.requests.pop(number, None)
            if task:
                task.cancel()
        elif kind == "B":
            self.orderly = True

    def _send(self, kind, number, payload=b""):
        self.writer.write(HEAD.pack(ord(kind), number, len(payload)) + payload)

    async def _answer(self, number, words):
        status, text = await self.on_request(words)
        if status is None or self.requests.pop(number, None) is None:
            return
        payload = bytes([status]) + text.encode(errors="surrogateescape")
        while len(payload) > PART:
            self._send("P", number, payload[:PART])
            payload = payload[PART:]
        self._send("A", number, payload)

    def leave(self, how):
        """Have the guest reboot or power off in good order."""
        if self.up.is_set():
            self._send("L", 0, how.encode() + b"\0")

    async def run_job(self, argv):
        """Run a command in the guest; its status, or None when the guest went down meanwhile."""
        future = asyncio.get_running_loop().create_future()
        self.exits[self.next_job] = future
        self._send("J", self.next_job, b"".join(a.encode() + b"\0" for a in argv))
        self.next_job += 1
        return await future
