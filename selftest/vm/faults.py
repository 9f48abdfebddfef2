# SPDX-License-Identifier: LGPL-2.1-or-later
"""Talks to faults.c in QEMU: sends its commands and keeps its events."""

import asyncio
import json
import os
import shutil
import socket

from util import VmError, background


class Faults:
    """The flush settings of every region; they are told to QEMU, and told again to the next QEMU."""

    def __init__(self, log_path):
        self.log_path = log_path
        open(log_path, "ab").close()
        self.delay, self.durable, self.begun = {}, {}, {}
        self.not_copied = set()
        self.hanging = {}
        self.changed = asyncio.Condition()
        self.replies = asyncio.Queue()
        self.turn = asyncio.Lock()
        self.sock = None

    def attach(self, environment, library):
        """A fresh channel for a QEMU about to start; the descriptor it must inherit."""
        self.detach()
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        environment.update(LD_PRELOAD=library, VM_FAULTS_FD=str(theirs.fileno()),
                           VM_FAULTS_LOG=self.log_path)
        asyncio.get_running_loop().add_reader(self.sock, self._readable)
        return theirs

    def detach(self):
        if self.sock:
            asyncio.get_running_loop().remove_reader(self.sock)
            self.sock.close()
            self.sock = None
        self.hanging.clear()

    def _readable(self):
        try:
            message = self.sock.recv(8192).decode()
        except OSError:
            message = ""
        if not message:
            asyncio.get_running_loop().remove_reader(self.sock)
            self.replies.put_nowait("- QEMU has ended")
            return
        kind, _, rest = message.partition(" ")
        if kind != "!":
            self.replies.put_nowait(message)
            return
        _, region, number = rest.split()
        self.hanging.setdefault(region, []).append(int(number))
        background(self._notify())

    async def _notify(self):
        async with self.changed:
            self.changed.notify_all()

    async def send(self, verb, region, rest=""):
        """One command; returns (flushes begun, flushes hanging)."""
        async with self.turn:
            if not self.sock:
                raise VmError("the machine is off")
            while not self.replies.empty():
                self.replies.get_nowait()
            await asyncio.get_running_loop().sock_sendall(
                self.sock, f"{verb} {region} {rest}".rstrip(" ").encode())
            kind, _, rest = (await self.replies.get()).partition(" ")
        if kind != "=":
            raise VmError(f"{region}: {rest}")
        begun, hanging = map(int, rest.split())
        self.begun[region] = begun
        return begun, hanging

    async def add_region(self, region, backing):
        """Tell QEMU's library of a region, with what stays in force when the machine starts again."""
        await self.send("region", region, f"{self.begun.get(region, 0)} {backing}")
        if region in self.durable:
            await self.set_durable(region, region not in self.not_copied)
        if region in self.delay:
            await self.send("delay", region, str(self.delay[region]))

    async def set_delay(self, region, microseconds):
        self.delay[region] = microseconds
        await self.send("delay", region, str(microseconds))

    async def set_durable(self, region, on):
        """Whether each flush of the region copies its backing file."""
        await self.send("durable", region, self.durable[region] if on else "")
        (self.not_copied.discard if on else self.not_copied.add)(region)

    async def release(self, region, how):
        await self.send("release", region, how)
        self.hanging.pop(region, None)

    async def wait_hung(self, regions):
        """The first (region, number) that hangs; at once when one does already."""
        async with self.changed:
            await self.changed.wait_for(lambda: any(self.hanging.get(r) for r in regions))
        return next((r, self.hanging[r][0]) for r in regions if self.hanging.get(r))

    def log(self, regions):
        with open(self.log_path, encoding="ascii") as f:
            return "".join(line for line in f if json.loads(line)["region"] in regions)

    def next_power_on(self):
        """Numbers go on after the flushes of the machine that is gone (the log has those that ended)."""
        with open(self.log_path, encoding="ascii") as f:
            for line in map(json.loads, f):
                self.begun[line["region"]] = max(self.begun.get(line["region"], 0), line["number"])

    def prepare_durable(self, region, backing, directory):
        """From now on there is a durable image: it begins as what the backing file holds."""
        os.makedirs(directory, exist_ok=True)
        self.durable[region] = os.path.join(os.path.realpath(directory), f"{region}.img")
        shutil.copyfile(backing, self.durable[region])
