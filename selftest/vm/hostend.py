# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's reader of io.pmem.agent.0: everything that comes is kept, with the time it came."""

import asyncio
import json
import re
import time

from util import background

LINE_MAX = 1 << 20


class HostEnd(asyncio.Protocol):
    """Connected by default; may be disconnected, or connected and never reading."""

    def __init__(self, path, log_path):
        self.path, self.log_path = path, log_path
        self.transport = None
        self.paused = False
        self.buffer = b""
        self.lines = []
        self.changed = asyncio.Condition()
        self.drained = asyncio.Event()
        self.drained.set()
        self.closed = asyncio.Event()
        open(log_path, "ab").close()

    async def connect(self):
        if self.transport is None:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, self.path)

    def connection_made(self, transport):
        self.transport = transport
        self.closed.clear()
        self.buffer = b""
        self.drained.set()
        if self.paused:
            transport.pause_reading()

    def connection_lost(self, exc):
        self.transport = None
        self.drained.set()
        self.closed.set()

    def pause_writing(self):
        self.drained.clear()

    def resume_writing(self):
        self.drained.set()

    async def disconnect(self):
        if self.transport:
            self.transport.abort()
            await self.closed.wait()

    def pause(self):
        self.paused = True
        if self.transport and self.transport.is_reading():
            self.transport.pause_reading()

    def resume(self):
        self.paused = False
        if self.transport and not self.transport.is_reading():
            self.transport.resume_reading()

    def data_received(self, data):
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        if len(self.buffer) > LINE_MAX:
            lines.append(self.buffer)
            self.buffer = b""
        if lines:
            self._keep(lines, time.time())

    def _keep(self, lines, now):
        with open(self.log_path, "a", encoding="utf-8") as f:
            for line in lines:
                text = line.decode(errors="backslashreplace")
                entry = {"time": round(now, 6), "line": text}
                try:
                    entry["message"] = json.loads(line.lstrip(b"\xff"))
                except ValueError:
                    pass
                self.lines.append(text)
                f.write(json.dumps(entry) + "\n")
        background(self._notify())

    async def _notify(self):
        async with self.changed:
            self.changed.notify_all()

    async def wait_for(self, pattern, since, timeout):
        """The first line from number @since on that matches, or None."""
        regex = re.compile(pattern)

        def found():
            return next((line for line in self.lines[since:] if regex.search(line)), None)

        async def wait():
            async with self.changed:
                await self.changed.wait_for(lambda: found() is not None)
            return found()

        try:
            return await asyncio.wait_for(wait(), timeout)
        except asyncio.TimeoutError:
            return None

    async def send(self, data):
        """False when nobody is connected; returns when QEMU has taken (nearly) all of it."""
        if not self.transport:
            return False
        self.transport.write(data)
        await self.drained.wait()
        return True
