#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The protocol of pmem-agent-host(7) over a real virtio-serial port, and what of it only a guest can show.

r0 is fsdax, r1 device-dax. With the argument "times": a flush that the host demands against freeze and thaw of the QEMU
guest agent, on the same mount, one after the other by turns.
"""

import base64
import ctypes
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

import hostproto
from testlib import Load, check, comment, finish, run, vm, wait_until

CHUNK = 2900
MOUNT = "/mnt"
TURNS = 15


class VmTransport:
    """The test host's end of the port, which keeps what comes."""

    def __init__(self, since=None):
        self.next = int(vm("host", "count")) if since is None else since

    def send(self, data):
        for i in range(0, len(data), CHUNK):
            vm("host", "send-raw", base64.b64encode(data[i:i + CHUNK]).decode())

    def lines(self, seconds):
        end = time.monotonic() + seconds
        while True:
            new = vm("host", "lines", "--since", str(self.next)).split("\n")
            for line in filter(None, new):
                self.next += 1
                yield line.encode()
                end = time.monotonic() + seconds
            if time.monotonic() > end:
                return


def connect():
    """A host that connects anew, and its greeting: for which it asks if the agent has not seen the one before go."""
    vm("host", "disconnect")
    since = int(vm("host", "count"))
    vm("host", "connect")
    host = hostproto.Host(VmTransport(since))
    greeting = host.greeting(seconds=5)
    if greeting is None:
        host.transport.send(b"\xff")
        greeting = host.greeting()
    return host, greeting


def agent_region(name):
    """What the agent calls a region of the test host, and where it is."""
    address = int(vm("region", "address", name), 0)
    regions = json.loads(run("pmemctl", "list", "--json").stdout)["regions"]
    return next(r["region"] for r in regions if r["resource"] == address), address


def pmemctl(*words):
    done = run("pmemctl", *words)
    return done.returncode, done.stdout


def test_filesystem(host, address):
    uuid = run("blkid", "-s", "UUID", "-o", "value", vm("dev", "r0")).stdout.strip()
    before = int(vm("fsync", "count", "r0"))
    answer = host.ask("flush", uuid=uuid)
    check("a filesystem by its UUID", answer["scope"] == "filesystem" and answer["regions"][0]["address"] == address,
          answer)
    check("which reaches the host", int(vm("fsync", "count", "r0")) > before)
    check("in capitals too", host.ask("flush", uuid=uuid.upper())["scope"] == "filesystem")
    check("by its mount point", host.ask("flush", path=MOUNT)["scope"] == "filesystem")
    check("a region by its address", host.ask("flush", address=address)["scope"] == "region")
    vm("fsync", "hang", "1", "r0")
    id = host.command("flush", address=address, timeout_usec=300000)
    try:
        host.answer(id)
        name = None
    except hostproto.Refused as refused:
        name = refused.name
    check("a deadline is kept though the host hangs", name == "TimedOut")
    since = host.mark()
    host.command("flush", id="earlier", address=address)
    host.transport.send(b"\xff")
    check("0xFF makes it forget what another program may have asked for", host.greeting(since))
    since = host.mark()
    host.command("flush", id="later", address=address)
    host.command("flush", id="later", address=address, retry=True)
    vm("fsync", "release", "r0")
    check("asked twice meanwhile, it is answered", host.answer("later", since=since)["regions"])
    list(host.pump(0.5))
    check("and nothing else is", not any(message.get("id") == "earlier" for message in host.messages))


def test_devdax(host, region, address):
    device = vm("dev", "r1")
    mine = next(r for r in host.ask("query")["regions"] if r["region"] == region)
    check("device-dax: only the host can flush it", mine["method"] == "host" and not mine["served"], mine)
    check("without a host that does: impossible", host.refusal("flush", address=address) == "Impossible"
          and pmemctl("flush", device)[0] == 12)
    host.serve(region)
    check("a host that serves: it can be flushed", host.ask("flush", address=address)["basis"] == "host-confirmed")
    flush = subprocess.Popen(["pmemctl", "flush", "--json", device], stdout=subprocess.PIPE, text=True)
    wanted = host.wait(lambda m: m.get("event") == "FLUSH_WANTED", since=host.mark())["data"]
    list(host.pump(0.5))
    out = flush.communicate()[0]
    check("by a program of the guest too", wanted["purpose"] == "flush" and wanted["address"] == address
          and flush.returncode == 0 and '"host-confirmed"' in out, out)
    host.on_wanted = lambda data: host.flushed(data, 5)
    check("its error is a loss", host.refusal("flush", address=address) == "Lost" and pmemctl("flush", device)[0] == 3)
    loss = next(r for r in host.ask("query")["regions"] if r["region"] == region)["loss"]
    host.ask("acknowledge", address=address, loss=loss)
    host.on_wanted = host.flushed
    check("until it is acknowledged", host.ask("flush", address=address))
    host.on_wanted = None
    flush = subprocess.Popen(["pmemctl", "flush", "-q", device])
    host.wait(lambda m: m.get("event") == "FLUSH_WANTED", since=host.mark())
    again, _ = connect()
    check("the host leaves before it answers: the next one is asked",
          again.serve(region) and again.wait(lambda m: m.get("event") == "FLUSH_WANTED"))
    list(again.pump(0.5))
    check("and its answer is the flush", flush.wait(20) == 0)
    vm("host", "disconnect")
    check("nobody there: impossible again", wait_until(10, lambda: pmemctl("flush", device)[0] == 12))


def test_backing(region):
    host, _ = connect()
    host.ask("set-backing", region=region, type="ram")
    check("RAM, says the host: no flush of the guest's promises anything",
          pmemctl("flush", region)[0] == 12 and pmemctl("flush", MOUNT)[0] == 12)
    vm("host", "disconnect")
    run("systemctl", "restart", "pmem-agent")
    check("an agent that has not been told knows it too", pmemctl("flush", region)[0] == 12)
    host, _ = connect()
    listed = json.loads(pmemctl("list", "--json")[1])["regions"]
    mine = next(r for r in listed if r["region"] == region)
    check("pmemctl list tells it", (mine["attestation"], mine["method"]) == ("refused", "impossible")
          and any("host says" in line for line in mine["evidence"]), mine)
    host.ask("set-backing", region=region, type="file", share=True)
    check("a file that is shared: it does", pmemctl("flush", MOUNT)[0] == 0)


def test_instance(host):
    name = ("busctl", "get-property", "io.pmem.Agent1", "/io/pmem/Agent1", "io.pmem.Agent1.Manager", "Instance")
    before, ticket = run(*name).stdout, pmemctl("flush", "--no-wait", MOUNT)[1].strip()
    pmemctl("flush", MOUNT)
    instance = host.ask("new-instance")["instance"]
    check("the instance is another on D-Bus", instance in run(*name).stdout and instance not in before)
    check("and in the page", any(page.hex() == instance for page in instances_of_pages()))
    status, out = pmemctl("wait", ticket)
    check("what was confirmed before is unknown", status == 4, f"{status} {out}")
    check("and the next flush is durable", pmemctl("flush", MOUNT)[0] == 0)


def instances_of_pages():
    for name in os.listdir("/run/pmem-agent"):
        if name.endswith(".page"):
            with open("/run/pmem-agent/" + name, "rb") as f:
                yield f.read()[352:368]


def test_reconnects(region, n):
    rng = random.Random(1)
    load = Load(4, "region", vm("dev", "r0"))
    instances, epochs, ungreeted = [], [], []
    for i in range(n):
        host, greeting = connect()
        if greeting is None:
            ungreeted.append(i)
            continue
        mine = next(r for r in greeting["regions"] if r["region"] == region)
        instances.append(greeting["instance"])
        epochs.append(mine["epoch"])
        line = json.dumps({"execute": "flush", "arguments": {"region": region}, "id": i}).encode() + b"\n"
        host.transport.send((line * 20)[:rng.randrange(1, 20 * len(line))])
    rows = load.end()
    check(f"{n} reconnects over virtio-serial: each is greeted", not ungreeted, ungreeted)
    # The port tells only how it is when it is asked: who is away for a moment may not be missed on a busy machine.
    unseen = sum(a == b for a, b in zip(instances, instances[1:]))
    check(f"in an instance of its own, but {unseen} that were too quick to be seen",
          unseen <= n // 5 and len(set(instances)) == len(instances) - unseen)
    check("no epoch goes back", epochs == sorted(epochs), epochs)
    check(f"{len(rows)} flushes meanwhile, each durable", rows and all(row[2] == "durable" for row in rows),
          {row[2] for row in rows})


# ---- times ----

class GuestAgent:
    """QEMU's own, asked through a socket, which spares it the way over the port."""

    def __init__(self):
        path = tempfile.mkdtemp() + "/qga"
        self.process = subprocess.Popen(["qemu-ga", "-m", "unix-listen", "-p", path, "-t", os.path.dirname(path)])
        if not wait_until(20, lambda: os.path.exists(path)):
            raise OSError("qemu-ga doesn't listen")
        self.sock = hostproto.socket.socket(hostproto.socket.AF_UNIX)
        self.sock.connect(path)
        self.file = self.sock.makefile("rb")

    def ask(self, name, **arguments):
        self.sock.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        answer = json.loads(self.file.readline())
        if "return" not in answer:
            raise OSError(answer)
        return answer["return"]

    def freeze_and_thaw(self):
        """Begin and end of the time in which nobody can write."""
        began = time.monotonic()
        if self.ask("guest-fsfreeze-freeze-list", mountpoints=[MOUNT]) != 1:
            raise OSError("nothing frozen")
        self.ask("guest-fsfreeze-thaw")
        return began, time.monotonic()

    def end(self):
        self.process.terminate()
        self.process.wait()


WRITER = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1 << 20)
print("writing", flush=True)
block, i = b"x" * 4096, 0
while os.getppid() == int(sys.argv[2]):
    began = time.monotonic()
    os.pwrite(fd, block, i % 256 * 4096)
    ended = time.monotonic()
    i += 1
    if ended - began > 0.0005:
        print(began, ended, flush=True)
    time.sleep(0.0005)
"""


def longest(stalls, window):
    """How long a writer was held up in that time, at most."""
    return max([0] + [min(e, window[1]) - max(b, window[0]) for b, e in stalls if e > window[0] and b < window[1]])


def ask(id, name, times=1, **arguments):
    """The time in which the test host asked it, and the seconds that an answer took, as the test host measures."""
    began = time.monotonic()
    lines = vm("host", "ask", json.dumps({"execute": name, "arguments": arguments, "id": id}),
               "--times", str(times)).splitlines()
    if not all('"return"' in line for line in lines):
        raise OSError(lines)
    return (began, time.monotonic()), statistics.median(int(line.split()[0]) for line in lines) / 1e6


def dirty(i):
    """The same to be made durable for each."""
    with open(f"{MOUNT}/dirty-{i % 2}", "wb") as f:
        f.write(os.urandom(1 << 18))


def measure(agent, i):
    """Freeze and thaw, a query and a flush: by turns, so that whatever else the machine does befalls them alike."""
    dirty(2 * i)
    frozen = agent.freeze_and_thaw()
    queried = ask(f"q{i}", "query")
    dirty(2 * i + 1)
    return frozen, queried, ask(f"f{i}", "flush", path=MOUNT)


def ms(values):
    return f"p50 {statistics.median(values) * 1e3:.1f}, max {max(values) * 1e3:.1f} ms"


def test_times(agent):
    """Returns how long a way over the port takes."""
    measure(agent, 0)
    frozen, queried, flushed = zip(*[measure(agent, i) for i in range(TURNS)])
    # Whoever asks it over its port waits for two more answers to cross that: a query's way is one.
    crossing = statistics.median(seconds for _, seconds in queried)
    freeze = [end - began + 2 * crossing for began, end in frozen]
    took = [seconds for _, seconds in flushed]
    comment(f"{TURNS} turns: freeze and thaw {ms(freeze)}, of it {2 * crossing * 1e3:.1f} ms for the way; "
            f"a flush that the host demands {ms(took)}")
    check("a flush that the host demands takes at most half of freeze and thaw",
          statistics.median(took) <= statistics.median(freeze) / 2)
    return crossing


def syncfs(times):
    """The kernel's own, as often and as far apart, by a program that does nothing else."""
    began, fd = time.monotonic(), os.open(MOUNT, os.O_RDONLY)
    for _ in range(times):
        if ctypes.CDLL(None).syncfs(fd) < 0:
            raise OSError("syncfs")
        time.sleep(0.05)
    os.close(fd)
    return began, time.monotonic()


def test_stalls(agent, crossing):
    # What else goes on in the guest holds a writer up, too: nothing does, while the test host asks by itself. By turns,
    # since the machine has its moods: without KVM a CPU may wake up as late as the next tick, 4 ms.
    ways = {"query": lambda i: ask(f"q{i}", "query", 5)[0], "flush": lambda i: ask(f"f{i}", "flush", 5, path=MOUNT)[0],
            "syncfs": lambda i: syncfs(5)}
    frozen, windows = [], {name: [] for name in ways}
    with open("/tmp/stalls", "w+") as log:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, MOUNT + "/written", str(os.getpid())], stdout=log)
        wait_until(20, lambda: os.path.getsize("/tmp/stalls") > 0)
        for i in range(TURNS):
            frozen.append(agent.freeze_and_thaw())
            for name, way in ways.items():
                windows[name].append(way(i))
        writer.terminate()
        writer.wait()
        log.seek(0)
        stalls = [tuple(map(float, line.split())) for line in log.read().splitlines()[1:]]
    window = statistics.median(end - began + 2 * crossing for began, end in frozen)
    held = {name: [longest(stalls, w) for w in windows[name]] for name in ways}
    comment(f"beside a writer freeze and thaw take {ms([e - b for b, e in frozen])}, and hold it up "
            f"{ms([longest(stalls, w) for w in frozen])}; at most of five "
            + ", ".join(f"{name} {ms(held[name])}" for name in ways))
    check("no writer is held up by it for longer than a tenth of that, or than by a syncfs",
          statistics.median(held["flush"]) <= max(window / 10, statistics.median(held["syncfs"])))


def main():
    run("systemctl", "start", "pmem-agent")
    run("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", vm("dev", "r0"))
    os.makedirs(MOUNT, exist_ok=True)
    run("mount", "-o", "dax=always", vm("dev", "r0"), MOUNT)
    run("udevadm", "settle")
    if "times" in sys.argv:
        agent = GuestAgent()
        test_stalls(agent, test_times(agent))
        agent.end()
        finish()
    region, address = agent_region("r0")
    host, greeting = connect()
    hostproto.check_messages(check, host, greeting, region)
    hostproto.check_flush(check, host, region, everything=False)
    test_filesystem(host, address)
    test_devdax(host, *agent_region("r1"))
    test_backing(region)
    test_instance(connect()[0])
    test_reconnects(region, 30)
    finish()


main()
