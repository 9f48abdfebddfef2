#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""In the guest: stores, has them flushed, and has the host write down what a power cut would leave at any moment.

usage: guest.py SEED ROW...        see rows.py

r0 is what is written to, r1 the board (device-dax), r2 gets the images of cut points, to be mounted and looked at.
Fixed pages need no mount: what is durable of them the host judges by itself, when all is over.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import threading

sys.path[:0] = ["/root/guest", os.path.dirname(os.path.realpath(__file__))]

import rows  # noqa: E402
from testlib import agent_pid, comment, forgive_restarts, kill, run, vm, wait_until  # noqa: E402

BOARD, DEVICE, MOUNT, IMAGE = "/dev/dax1.0", "/dev/pmem0", "/mnt", "/check"
LOAD = "/root/load-cut"
AGENT = "/usr/sbin/pmem-agent"
LIMIT = 60  # seconds, of one load


def must(*command):
    done = run(*command)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stdout}")
    return done.stdout


def use_agent(path):
    """The agent is that program from now on."""
    run("systemctl", "stop", "pmem-agent.service", "pmem-agent.socket")
    run("umount", AGENT)
    if path:
        must("mount", "--bind", path, AGENT)
    forgive_restarts()
    must("systemctl", "start", "pmem-agent.socket", "pmem-agent.service")


def worker_pid():
    """Of region0."""
    children = run("pgrep", "-P", str(agent_pid())).stdout.split()
    return int(children[0]) if children else 0


# ---- what happens meanwhile ----

class Fault(threading.Thread):
    """Does something again and again until the load has ended; counts how often."""

    def __init__(self, name, choice):
        super().__init__(daemon=True)
        self.action, self.choice = getattr(self, name.replace("-", "_")), choice
        self.ended, self.n, self.error = threading.Event(), 0, None

    def run(self):
        try:
            while not self.ended.wait(self.choice.random() * 0.3):
                self.action()
                self.n += 1
        except (OSError, subprocess.SubprocessError, TimeoutError, ValueError) as e:
            self.error = e

    def end(self):
        self.ended.set()
        self.join()
        vm("fsync", "fail", "off", "r0")
        vm("fsync", "hang", "off", "r0")
        run("vm", "fsync", "release", "r0")
        if self.error:
            raise OSError(f"the fault ended: {self.error}")

    def fail(self):
        vm("fsync", "fail", str(self.choice.randint(1, 12)), "r0")

    def stolen(self):
        """The error is taken by a program that flushes the same device."""
        fd = os.open(DEVICE, os.O_RDONLY)
        vm("fsync", "fail", str(self.choice.randint(1, 4)), "r0")
        try:
            for _ in range(4):
                with contextlib.suppress(OSError):
                    os.fsync(fd)
        finally:
            os.close(fd)

    def hang(self):
        vm("fsync", "hang", str(self.choice.randint(1, 6)), "r0")
        # Nothing may be under way: the load may be about to end.
        if subprocess.run(["timeout", "5", "vm", "fsync", "wait-hung", "r0"], stdout=subprocess.DEVNULL).returncode == 0:
            self.ended.wait(self.choice.random() * 0.2)
            run("vm", "fsync", "release", *self.choice.choice((["fail"], [])), "r0")

    def slow(self):
        vm("fsync", "delay", str(self.choice.randrange(30000)), "r0")

    def kill_agent(self):
        forgive_restarts()
        if agent_pid():
            kill(agent_pid())
        if not wait_until(20, agent_pid):
            raise TimeoutError("no agent comes after the one that was killed")

    def kill_worker(self):
        with contextlib.suppress(ProcessLookupError):
            if worker_pid():
                kill(worker_pid())

    def orphan(self):
        """The agent is killed while a flush hangs, and the error comes when the next one is there."""
        vm("fsync", "hang", "1", "r0")
        if subprocess.run(["timeout", "5", "vm", "fsync", "wait-hung", "r0"], stdout=subprocess.DEVNULL).returncode == 0:
            self.kill_agent()
            self.ended.wait(0.5)
            run("vm", "fsync", "release", "fail", "r0")

    def restart(self):
        forgive_restarts()
        must("systemctl", "restart", "pmem-agent")

    def bus(self):
        run("systemctl", "reset-failed", "dbus.service", "dbus.socket")
        must("systemctl", "restart", "dbus")

    def port(self):
        run("vm", "port", "remove")
        self.ended.wait(0.2)
        run("vm", "port", "add")

    def state_full(self):
        """Losses that can't be written down."""
        self.fail()
        must("mount", "-t", "tmpfs", "-o", "size=4k,mode=0777", "none", "/var/lib/pmem-agent")
        with contextlib.suppress(OSError), open("/var/lib/pmem-agent/filler", "wb") as f:
            f.write(bytes(8192))
        self.ended.wait(0.5)
        must("umount", "-l", "/var/lib/pmem-agent")

    def state_read_only(self):
        self.fail()
        must("mount", "-t", "tmpfs", "-o", "ro", "none", "/var/lib/pmem-agent")
        self.ended.wait(0.5)
        must("umount", "-l", "/var/lib/pmem-agent")

    def hot_add(self):
        if self.n < 2:
            vm("region", "add", "virtio-pmem:16M")


def settle():
    """What has been lost is acknowledged, and region0 can be flushed again."""
    status = "busctl get-property io.pmem.Agent1 /io/pmem/Agent1/region/region0 io.pmem.Agent1.Region Loss | cut -d' ' -f2"

    def flushed():
        if run("pmemctl", "flush", "region0").returncode == 0:
            return True
        run("sh", "-c", f"pmemctl acknowledge region0 --loss=$({status})")
        return False

    if not wait_until(30, flushed):
        raise TimeoutError("region0 can't be flushed any more")


# ---- loads ----

@contextlib.contextmanager
def recorded(name, region="r0"):
    must(LOAD, BOARD, "clear")
    vm("record", "start", name, region, "r1")
    try:
        yield
    finally:
        vm("record", "stop", region)


def make_filesystem(kind, device=DEVICE):
    run("umount", MOUNT)
    if kind == "xfs":
        must("mkfs.xfs", "-q", "-f", "-m", "reflink=0", device)
    else:
        must("mkfs.ext4", "-F", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
    must("mount", "-o", "dax=always", device, MOUNT)


def prepare(row):
    """The target of the load."""
    device = vm("dev", row.region)
    run("umount", MOUNT)
    if not row.images:
        # Pages of earlier rows would be taken for slots of this one.
        run("dd", "if=/dev/zero", f"of={device}", "bs=1M", "oflag=direct")
    if not row.filesystem:
        must(LOAD, BOARD, "init", device, str(row.lanes * 8))
        return device
    make_filesystem(row.filesystem, device)
    if row.store != "map":
        return MOUNT
    must(LOAD, BOARD, "init", f"{MOUNT}/slots", str(row.lanes * 8))
    return f"{MOUNT}/slots"


def command_of(row, target, seconds):
    if row.store == "program":
        words = ["/usr/bin/python3", "/root/prove/programs.py", row.flush, MOUNT, BOARD, str(row.promises)]
    else:
        words = [LOAD, BOARD, row.store, row.flush, target, str(row.lanes), str(row.promises), str(seconds)]
    return ["pmemctl", "run", "--", *words] if row.preload else words


def orphaned(target, turns):
    """What an agent would do that began a flush beside one in flight: a flush takes a page along and hangs, who asked
    for it is killed, somebody else flushes; then the first one fails, which nobody is told."""
    for turn in range(1, turns + 1):
        must(LOAD, BOARD, "put", target, "0", str(turn))
        vm("fsync", "hang", "1", "r0")
        first = subprocess.Popen(["sync", target])
        must("timeout", "20", "vm", "fsync", "wait-hung", "r0")
        first.kill()
        second = subprocess.Popen(["sh", "-c", f"sync {target} && {LOAD} {BOARD} note 0 0 {turn}"])
        vm("fsync", "release", "fail", "r0")
        first.wait(20)
        second.wait(20)
    return f"{turns} turns"


def do_load(row, choice):
    """What the load said, and how many faults there were."""
    target = prepare(row)
    if row.delay:
        vm("fsync", "delay", str(row.delay), "r0")
    with recorded(row.name, row.region):
        fault = Fault(row.fault, choice) if row.fault else None
        if fault:
            fault.start()
        if row.store == "orphan":
            return orphaned(target, row.promises), row.promises
        done = run(*command_of(row, target, row.seconds or LIMIT))
        if fault:
            fault.end()
    vm("fsync", "delay", "0", "r0")
    if done.returncode != 0:
        raise OSError(f"the load ended with {done.returncode}: {done.stdout}")
    return done.stdout.strip().splitlines()[-1], fault.n if fault else 0


# ---- images that must be mounted ----

def look_at(row, cut):
    """What is wrong with the image that is in r2 now; "" for nothing."""
    device = vm("dev", "r2")
    run("blockdev", "--flushbufs", device)
    done = run("mount", "-t", row.filesystem, device, IMAGE)
    if done.returncode != 0:
        return f"it can't be mounted: {done.stdout}"
    try:
        if row.store == "program":
            done = run("python3", "/root/prove/programs.py", "verify-" + row.flush, IMAGE, BOARD, str(cut["told"]))
        else:
            done = run(LOAD, BOARD, "verify", IMAGE, str(cut["told"]))
        return done.stdout if done.returncode != 0 else ""
    finally:
        must("umount", IMAGE)


def look_at_all(row, seed):
    os.makedirs(IMAGE, exist_ok=True)
    run("umount", MOUNT)
    n_images = int(vm("replay", "start", row.name, str(row.images), str(seed)))
    n, promises, violations = 0, 0, []
    while line := vm("replay", "next", "r2"):
        cut = json.loads(line)
        n += 1
        promises += cut["told"]
        wrong = look_at(row, cut)
        if wrong:
            violations.append({**cut, "wrong": wrong.splitlines()[:6]})
            if row.control:
                break
    return {"points": n, "images": n_images, "checked": promises, "violations": violations}


def do_row(row, seed):
    choice = random.Random(f"{seed} {row.name}")
    if row.agent:
        use_agent(f"/root/controls/{row.agent}")
    said, faults = do_load(row, choice)
    result = {"row": row.name, "faults": faults, "said": said}
    if row.images:
        result.update(look_at_all(row, seed))
    if row.agent:
        use_agent(None)
    print("ROW " + json.dumps(result), flush=True)
    settle()


def main():
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    must("systemctl", "start", "pmem-agent.service")
    status = 0
    for name in sys.argv[2:]:
        try:
            do_row(rows.find(name), int(sys.argv[1]))
        except (OSError, ValueError, subprocess.SubprocessError) as e:
            print("ROW " + json.dumps({"row": name, "broken": str(e)}), flush=True)
            status = 1
    sys.exit(status)


main()
