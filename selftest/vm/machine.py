# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU: its command line, its process, and QMP."""

import asyncio
import contextlib
import json
import os
import shlex
import socket

from util import VmError, background, dying_with_us, find_program, parse_size

KINDS = ("virtio-pmem", "nvdimm")
# Mode, and what the guest makes of the namespace: None is "as the kernel gives it".
MODES = {
    "virtio-pmem": {"fsdax": None, "fsdax-info": "fsdax", "devdax": "devdax", "raw": "raw",
                    "sector": "sector"},
    "nvdimm": {"raw": None, "fsdax": "fsdax", "devdax": "devdax", "sector": "sector",
               "unarmed": None},
}
DEFAULT_MODE = {"virtio-pmem": "fsdax", "nvdimm": "raw"}
HOTPLUG_PORTS = 4
MEMORY_FOR_HOTPLUG = 16 << 30


class Region:
    """One region of the guest, and the file behind it."""

    def __init__(self, text):
        kind, _, rest = text.partition(":")
        size, _, mode = rest.partition(":")
        if kind not in KINDS:
            raise VmError(f"--region {text}: kind '{kind}' is not known; there are "
                          f"{', '.join(KINDS)}, and 'none' for a guest without")
        if not size:
            raise VmError(f"--region {text}: KIND:SIZE[:MODE] is wanted, such as {kind}:128M")
        self.kind, self.size = kind, parse_size(size)
        if self.size % (2 << 20):
            raise VmError(f"--region {text}: the size must be a multiple of 2M")
        self.mode = mode or DEFAULT_MODE[kind]
        if self.mode not in MODES[kind]:
            raise VmError(f"--region {text}: mode '{self.mode}' is not known for {kind}; "
                          f"there are {', '.join(MODES[kind])}")
        self.id, self.backing, self.share, self.address = None, None, True, None
        self.hotplugged = False

    def setup(self):
        """What set-up-regions in the guest is told."""
        return f"{self.address:#x}:{MODES[self.kind][self.mode] or 'as-is'}"

    def objects(self):
        """The memory backend and the device, as QMP takes them."""
        backend = {"qom-type": "memory-backend-file", "id": f"mem-{self.id}", "size": self.size,
                   "mem-path": self.backing, "share": self.share}
        device = {"id": self.id, "memdev": f"mem-{self.id}",
                  "driver": "virtio-pmem-pci" if self.kind == "virtio-pmem" else "nvdimm"}
        if self.mode == "unarmed":
            device["unarmed"] = True
        return backend, device


class Qmp:
    """One QMP connection over a socket pair."""

    def __init__(self, on_event):
        self.on_event = on_event
        self.ours, self.theirs = socket.socketpair()
        self.waiting, self.next_id = {}, 1
        self.writer = None

    async def start(self):
        reader, self.writer = await asyncio.open_connection(sock=self.ours, limit=1 << 22)
        await reader.readline()
        background(self._read(reader))
        await self.command("qmp_capabilities")

    async def _read(self, reader):
        with contextlib.suppress(ConnectionResetError):     # what it had not read when it was killed
            while line := await reader.readline():
                message = json.loads(line)
                if "event" in message:
                    self.on_event(message)
                    continue
                future = self.waiting.pop(message.get("id"), None)
                if future and not future.done():
                    future.set_result(message)
        for future in self.waiting.values():
            if not future.done():
                future.set_result({"error": {"desc": "QEMU has ended"}})
        self.waiting.clear()

    async def command(self, name, /, **arguments):
        request = {"execute": name, "arguments": arguments, "id": self.next_id}
        self.next_id += 1
        future = asyncio.get_running_loop().create_future()
        self.waiting[request["id"]] = future
        self.writer.write(json.dumps(request).encode() + b"\n")
        answer = await future
        if "error" in answer:
            raise VmError(f"QMP {name}: {answer['error']['desc']}")
        return answer["return"]

    def close(self):
        if self.writer:
            self.writer.close()
        else:
            self.ours.close()


def accelerator(kvm):
    return "kvm" if kvm else "tcg,thread=multi"


def basic_arguments(kvm, kernel, initrd, append, console):
    """What a guest needs in any case."""
    # QEMU 7.2's TCG gets the flags of cmpxchg16b wrong at times: Linux 6.12 then dies in kmem_cache_alloc().
    cpu = "host" if kvm else "max,la57=off,cx16=off"
    words = ["console=ttyS0", "quiet", "loglevel=4", "panic=-1", "root=vm", "nokaslr", "mitigations=off",
             "audit=0", "random.trust_cpu=on", "systemd.show_status=0", "rcupdate.rcu_expedited=1",
             "systemd.log_target=console", "systemd.log_level=warning"]
    return [find_program("qemu-system-x86_64"), "-nodefaults", "-no-user-config",
            "-display", "none", "-nic", "none",
            "-accel", accelerator(kvm), "-cpu", cpu,
            "-chardev", f"file,id=console,path={console},append=on",
            "-serial", "chardev:console", "-kernel", kernel, "-initrd", initrd,
            "-append", " ".join(words + append)]


class Machine:
    """One QEMU process, from its start to its end."""

    def __init__(self, options, kernel, initrd, disks, run_dir, console, on_event):
        self.options, self.kernel, self.initrd = options, kernel, initrd
        self.disks, self.run_dir, self.console = disks, run_dir, console
        self.process = None
        self.qmp = Qmp(on_event)
        self.port, self.their_port = socket.socketpair()
        self.agent_listener = None
        self.incoming = None        # a file that it goes on from
        self.errors = os.path.join(run_dir, "qemu.log")

    def _agent_socket(self):
        """The listening socket behind io.pmem.agent.0, at agent.sock in the run's directory."""
        directory = os.open(self.run_dir, os.O_PATH)
        short = f"/proc/self/fd/{directory}/agent.sock"
        try:
            if os.path.exists(short):
                os.unlink(short)
            self.agent_listener = socket.socket(socket.AF_UNIX)
            self.agent_listener.bind(short)
            self.agent_listener.listen(1)
        finally:
            os.close(directory)

    def _arguments(self, regions):
        o = self.options
        slots = len(regions) + 8
        limit = o.memory + sum(r.size + (1 << 30) for r in regions) + MEMORY_FOR_HOTPLUG
        args = basic_arguments(o.kvm, self.kernel.vmlinuz, self.initrd, o.append,
                               self.console)
        args += ["-M", "q35,nvdimm=on", "-S", "-smp", str(o.cpus),
                 "-m", f"{o.memory >> 20}M,slots={slots},maxmem={limit >> 20}M",
                 "-global", "ICH9-LPC.disable_s3=0",
                 "-device", "virtio-rng-pci",
                 "-chardev", f"socket,id=qmp,fd={self.qmp.theirs.fileno()}",
                 "-mon", "chardev=qmp,mode=control",
                 # In the run's directory, which QEMU is started in: for programs of the host.
                 "-chardev", "socket,id=monitor,path=qmp.sock,server=on,wait=off",
                 "-mon", "chardev=monitor,mode=control",
                 "-device", "virtio-serial-pci,id=vmserial,max_ports=2",
                 "-chardev", f"socket,id=vmport,fd={self.their_port.fileno()}",
                 "-device", "virtserialport,bus=vmserial.0,nr=1,chardev=vmport,name=io.pmem.vm.0"]
        for serial, path, read_only in self.disks:
            args += ["-drive", f"if=none,id={serial},file={path},format=raw,cache=unsafe," +
                     f"readonly={'on' if read_only else 'off'}",
                     "-device", f"virtio-blk-pci,drive={serial},serial={serial}"]
        if o.port:
            args += ["-device", "virtio-serial-pci,id=agentserial",
                     "-chardev", "socket,id=agent,server=on,wait=off,"
                     f"fd={self.agent_listener.fileno()}",
                     "-device", "virtserialport,bus=agentserial.0,nr=1,chardev=agent,"
                     "name=io.pmem.agent.0,id=agentport"]
        for i in range(HOTPLUG_PORTS):
            args += ["-device", f"pcie-root-port,id=hot{i},chassis={i + 1},slot={i + 1}"]
        for region in regions:
            for option, what in zip(("-object", "-device"), region.objects()):
                args += [option, json.dumps(what)]
        if self.incoming:
            args += ["-incoming", f"exec:cat {shlex.quote(self.incoming)}"]
        return args

    async def start(self, regions, environment, descriptors):
        if self.options.port:
            self._agent_socket()
            descriptors = descriptors + [self.agent_listener]
        descriptors = descriptors + [self.qmp.theirs, self.their_port]
        for d in descriptors:
            d.setblocking(True)
        with open(self.errors, "ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *self._arguments(regions), stdin=asyncio.subprocess.DEVNULL, stdout=errors,
                stderr=errors, env={**os.environ, **environment}, start_new_session=True,
                cwd=self.run_dir,
                pass_fds=[d.fileno() for d in descriptors], preexec_fn=dying_with_us())
        for d in descriptors:
            d.close()
        try:
            await self.qmp.start()
        except (OSError, VmError, ValueError) as e:
            await self.process.wait()
            raise VmError(f"QEMU did not start: {e}") from e

    async def find_addresses(self, regions):
        for entry in await self.qmp.command("query-memory-devices"):
            for region in regions:
                if entry["data"].get("id") == region.id:
                    region.address = entry["data"].get("memaddr", entry["data"].get("addr"))

    async def add_region(self, region, port):
        backend, device = region.objects()
        if region.kind == "virtio-pmem":
            device["bus"] = f"hot{port}"
        await self.qmp.command("object-add", **backend)
        try:
            await self.qmp.command("device_add", **device)
        except VmError:
            await self.qmp.command("object-del", id=backend["id"])
            raise

    async def save(self, path):
        """Into a file, by migration; it stands still then."""
        await self.qmp.command("migrate", uri=f"exec:cat >{shlex.quote(path)}")
        while (status := (await self.qmp.command("query-migrate")).get("status")) != "completed":
            if status in ("failed", "cancelled"):
                raise VmError("QEMU can't save the machine")
            await asyncio.sleep(0.1)

    async def restored(self):
        """What it goes on from has been read."""
        while (await self.qmp.command("query-status"))["status"] == "inmigrate":
            await asyncio.sleep(0.1)

    async def kill(self):
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        self.close()

    def take_port(self):
        """The runner's port, whose new owner closes it."""
        port, self.port = self.port, None
        return port

    def close(self):
        self.qmp.close()
        if self.port:
            self.port.close()
