# SPDX-License-Identifier: LGPL-2.1-or-later
"""One run: from the first boot to the last script, with whatever happens to the machine between."""

import asyncio
import os
import shutil
import socket
import json
import sys

import control
import replay  # noqa: F401, it adds verbs
import image
import stage
from faults import Faults
from guestport import GuestPort
from hostctl import HostCtl
from hostend import HostEnd
from machine import HOTPLUG_PORTS, MODES, Machine, Region
from util import VmError, background, compile_c, say, tail

SKIPPED = 77
BOOT_LIMIT = 180            # seconds; a slow one takes 30
NUDGE = 45                  # seconds; see Session._nudge()
RESETS_PER_REBOOT = 8       # Linux tries several ways to reset a PC, each more than once; more is a guest that can't boot
BOOTS = 3
# What kernels say that fail before init, now and then, without KVM: 7.2 while it patches its own text, others while they
# wait for a CPU.
EARLY_ENDS = "Oops: int3", "soft lockup"


class Session:
    """The machine of this run, and all that hangs on it."""

    def __init__(self, options, run_dir):
        self.options, self.run_dir = options, run_dir
        log_dir = options.out or run_dir
        self.regions = options.regions
        self.machine = None
        self.off = asyncio.Event()
        self.off.set()
        self.went_down = asyncio.Event()    # reset or off, seen from the host
        self.expect_down = False
        self.set_up = False
        self.resets = 0
        self.wake_after = 0.0
        self.next_region, self.next_port = 0, 0
        self.middle_of_line = False
        self.faults = Faults(os.path.join(log_dir, "fsync.log"))
        self.host = None
        if options.port:
            self.host = HostEnd(os.path.join(run_dir, "agent.sock"),
                                os.path.join(log_dir, "host.jsonl"))
        self.hostctl = HostCtl(self, log_dir)
        self.port = GuestPort(lambda words: control.obey(self, words), self.show_output)
        self.durable_dir = options.durable or os.path.join(run_dir, "durable")
        self.console = os.path.join(log_dir, "console.log")

    # The machine

    def prepare(self):
        """Everything that is made before QEMU starts."""
        o = self.options
        base = image.base_image(o.cache, o.packages)
        self.kernel = image.kernel(o.cache, o.kernel)
        self.initrd = image.initrd(o.cache, self.kernel)
        self.library = compile_c(o.cache, "faults.so", ["faults.c", "record.c"],
                                 ["-shared", "-fPIC", "-ldl", "-lpthread"])
        disk = stage.make_disk(o, o.cache, base, self.run_dir)
        self.disks = [("base", base.image, True), ("kernel", self.kernel.image, True),
                      ("run", disk, False)]
        for region in self.regions:
            self.make_backing(region)

    def make_backing(self, region):
        region.id = f"r{self.next_region}"
        self.next_region += 1
        region.backing = os.path.join(self.run_dir, f"{region.id}.img")
        region.share = self.options.for_region(self.options.share, region.id, "on") == "on"
        with open(region.backing, "wb") as f:
            f.truncate(region.size)
        if self.options.durable:
            self.faults.prepare_durable(region.id, region.backing, self.options.durable)
        delay = self.options.for_region(self.options.fsync_delay, region.id, None)
        if delay:
            self.faults.delay[region.id] = int(delay)

    def region(self, name):
        for region in self.regions:
            if region.id == name:
                return region
        raise VmError(f"no region '{name}'; there are: {', '.join(r.id for r in self.regions)}")

    async def power_on(self):
        """Start QEMU, and wait until the guest says hello."""
        self.machine = machine = Machine(self.options, self.kernel, self.initrd, self.disks,
                                         self.run_dir, self.console, self.on_event)
        environment = {}
        theirs = self.faults.attach(environment, self.library)
        self.off.clear()
        self.went_down.clear()
        self.expect_down = False
        try:
            await machine.start(self.regions, environment, [theirs])
        except VmError as e:
            raise VmError(f"{e}\n{tail(machine.errors)}") from e
        background(self._watch(machine))
        await self.port.attach(machine.take_port())
        for region in self.regions:
            await self.faults.add_region(region.id, region.backing)
            if not self.set_up:
                await self._first_faults(region.id)
        await machine.find_addresses(self.regions)
        if self.host:
            await self.host.connect()
        await machine.qmp.command("cont")

    async def restore(self):
        """The machine is saved, ended, and another goes on from what was saved."""
        if any(r.hotplugged for r in self.regions):
            raise VmError("what is plugged in later has other addresses in another machine")
        before, path = self.machine, os.path.join(self.run_dir, "saved")
        await before.save(path)
        self.machine = machine = Machine(self.options, self.kernel, self.initrd, self.disks,
                                         self.run_dir, self.console, self.on_event)
        machine.incoming = path
        self.port.leave_machine()
        before.process.kill()
        await before.process.wait()
        try:
            await self._go_on(machine)
        except Exception as e:      # who asked for it in the guest is not there to be told
            say(f"the machine could not go on: {e}")
            self.off.set()
            self.port.reset()
            raise
        os.unlink(path)

    async def _go_on(self, machine):
        """From the file that it has been saved in."""
        self.faults.next_power_on()
        environment = {}
        theirs = self.faults.attach(environment, self.library)
        await machine.start(self.regions, environment, [theirs])
        background(self._watch(machine))
        await self.port.replace(machine.take_port())
        for region in self.regions:
            await self.faults.add_region(region.id, region.backing)
        await machine.restored()
        if self.host:
            await self.host.connect()
        await machine.qmp.command("cont")

    async def _first_faults(self, region):
        o = self.options
        for verb, values in (("fail", o.fsync_fail), ("hang", o.fsync_hang)):
            value = o.for_region(values, region, None)
            if value:
                await self.faults.send(verb, region, value)

    async def _watch(self, machine):
        await machine.process.wait()
        machine.close()
        if machine is not self.machine:     # the guest goes on in another
            return
        self.faults.detach()
        self.port.reset()
        self.off.set()
        self.went_down.set()

    def on_event(self, message):
        if message["event"] == "RESET":
            self.resets += 1
            self.port.reset()
            self.went_down.set()
        elif message["event"] == "SUSPEND":
            asyncio.get_running_loop().call_later(self.wake_after, self._wake)

    def _wake(self):
        background(self.machine.qmp.command("system_wakeup"))

    async def _nudge(self):
        """Without KVM, a CPU of QEMU's may sleep on though another has woken it; whatever stops them wakes all."""
        say("the guest is not up yet: stopped for a moment, and let go on")
        for command in ("stop", "cont"):
            await self.machine.qmp.command(command)

    async def _come_up(self):
        if self.off.is_set():
            await self._restore_durable()
            await self.power_on()
        for _ in range(RESETS_PER_REBOOT):
            self.went_down.clear()
            up = background(self.port.up.wait())
            down = background(self.went_down.wait())
            for _ in range(BOOT_LIMIT // NUDGE):
                done, waiting = await asyncio.wait({up, down}, timeout=NUDGE, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    break
                await self._nudge()
            for task in waiting:
                task.cancel()
            if not done or self.port.up.is_set() or self.off.is_set():
                break

    async def ready(self):
        """The guest is up, in whatever way it comes up; the regions have the modes asked for."""
        await self._come_up()
        for _ in range(BOOTS - 1):
            if self.port.up.is_set() or not any(text in tail(self.console, 200) for text in EARLY_ENDS):
                break
            say("the guest's kernel failed before it was up: once more")
            self.cut()
            await self.off.wait()
            await self._come_up()
        if not self.port.up.is_set():
            raise VmError(f"the guest did not come up; its console ends with\n{self.last_words()}")
        wishes = [r.setup() if not self.set_up and not r.hotplugged else f"{r.address:#x}:as-is"
                  for r in self.regions]
        status = await self.port.run_job([f"/{stage.LIB}/set-up-regions", *wishes])
        if status != 0:
            raise VmError(f"setting up the regions failed (status {status})\n{self.last_words()}")
        if not self.set_up:
            self._save_durable()
        self.set_up = True

    def _save_durable(self):
        """What setting up wrote counts as durable, or a power cut would undo it."""
        for region in self.regions:
            if region.id in self.faults.durable:
                shutil.copyfile(region.backing, self.faults.durable[region.id])

    async def _restore_durable(self):
        """Power was cut: what a region holds now is what was durable."""
        for region in self.regions:
            if region.id in self.faults.durable and self.set_up:
                shutil.copyfile(self.faults.durable[region.id], region.backing)
        self.faults.next_power_on()

    def last_words(self):
        text = tail(self.console)
        if self.machine and os.path.getsize(self.machine.errors):
            text += "\nQEMU says\n" + tail(self.machine.errors)
        return text

    def cut(self):
        self.expect_down = True
        if self.machine and not self.off.is_set():
            self.machine.process.kill()

    async def plug_region(self, text):
        region = Region(text)
        if MODES[region.kind][region.mode]:
            raise VmError("plugged in, a region is as the kernel gives it; use ndctl in the guest")
        if region.kind == "virtio-pmem" and self.next_port == HOTPLUG_PORTS:
            raise VmError("no hotpluggable slot is left")
        self.make_backing(region)
        await self.faults.add_region(region.id, region.backing)
        if self.hostctl.process:
            await self.hostctl.faults.add_region(region.id, region.backing)
        await self.machine.add_region(region, self.next_port)
        if region.kind == "virtio-pmem":
            self.next_port += 1
        region.hotplugged = True
        await self.machine.find_addresses([region])
        self.regions.append(region)
        return region

    # What runs in it

    def show_output(self, data):
        out = sys.stdout.buffer
        if self.options.scripts:
            text = b"" if self.middle_of_line else b"    "
            self.middle_of_line = not data.endswith(b"\n")
            data = text + data.replace(b"\n", b"\n    ")
            if not self.middle_of_line:
                data = data[:-4]
        out.write(data)
        out.flush()

    async def run_one(self, argv):
        """(status, remark); going down in good order, or because the host was asked to, is success."""
        self.expect_down = False
        resets = self.resets
        status = await self.port.run_job(argv)
        if status is not None:
            return status, ""
        if self.resets == resets:
            await self.off.wait()
        if self.port.orderly or self.expect_down:
            return 0, ""
        return 1, f"the guest went down; its console ends with\n{self.last_words()}"

    async def run_command(self):
        await self.ready()
        status, remark = await self.run_one(self.options.command)
        if remark:
            say(remark)
        elif not self.port.up.is_set() and not self.off.is_set():
            await self.ready()
        return status

    async def run_scripts(self):
        """Each script in turn; one line of TAP each, their output indented between."""
        counts = {"ok": 0, "not ok": 0, "skip": 0}
        print(f"1..{len(self.options.scripts)}", flush=True)
        for index, path in enumerate(self.options.scripts):
            if not self.port.up.is_set():
                await self.ready()
            status, remark = await self.run_one([stage.script_path(index, path)])
            if self.middle_of_line:
                print(flush=True)
            self.middle_of_line = False
            word = "ok" if status in (0, SKIPPED) else "not ok"
            counts["skip" if status == SKIPPED else word] += 1
            print(f"{word} {index + 1} - {os.path.basename(path)}" +
                  (" # SKIP" if status == SKIPPED else "") +
                  (f" # status {status}" if word == "not ok" else ""), flush=True)
            if remark:
                say(remark)
        print("{ok} passed, {not ok} failed, {skip} skipped".format(**counts), flush=True)
        return 1 if counts["not ok"] else 0

    async def serve_control(self):
        """The socket that `ctl` talks to."""
        async def serve(reader, writer):
            try:
                words = json.loads(await reader.readline())["argv"]
                status, text = await control.obey(self, words)
                writer.write(json.dumps({"status": status or 0, "out": text}).encode() + b"\n")
                await writer.drain()
            except (ValueError, KeyError, OSError):
                pass
            writer.close()

        directory = os.open(self.run_dir, os.O_PATH)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(f"/proc/self/fd/{directory}/ctl.sock")
        os.close(directory)
        if self.options.out:
            os.symlink(os.path.join(self.run_dir, "ctl.sock"), os.path.join(self.options.out, "ctl.sock"))
        await asyncio.start_unix_server(serve, sock=sock)

    async def run(self):
        await self.serve_control()
        try:
            if self.options.scripts:
                return await self.run_scripts()
            return await self.run_command()
        finally:
            if self.machine:
                await self.machine.kill()
            if self.options.out:
                os.unlink(os.path.join(self.options.out, "ctl.sock"))
