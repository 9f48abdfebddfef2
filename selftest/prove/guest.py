#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""In the guest: stores, has them flushed, and has the host write down what a power cut would leave at any moment.

usage: guest.py SEED ROW...        see rows.py

r0 is what is written to (or what the row says), r1 the board (device-dax), r2 gets the images of cut points, to be mounted
and looked at.
Fixed pages need no mount: what is durable of them the host judges by itself, when all is over.
"""

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import threading

sys.path[:0] = ["/root/guest", os.path.dirname(os.path.realpath(__file__))]

import rows  # noqa: E402
from testlib import agent_pid, forgive_restarts, kill, read_pages, run, vm, wait_until  # noqa: E402

BOARD, DEVICE, MOUNT, IMAGE = "/dev/dax1.0", "/dev/pmem0", "/mnt", "/check"
STRIPED = "/dev/mapper/striped"
LOAD, KILL_AT = "/root/load-cut", "/root/kill-at"
AGENT = "/usr/sbin/pmem-agent"
LIMIT = 60  # seconds, of one load
MANY = 1000000    # steps; nobody makes so many


def page_of_r0():
    """Of the pages the one whose region has been flushed most: those of the board and of the images are not."""
    return max(read_pages(), key=lambda page: page.started)


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


# ---- what happens meanwhile ----

class Fault(threading.Thread):
    """Does something again and again until the load has ended; counts how often."""

    def __init__(self, row, choice):
        super().__init__(daemon=True)
        self.action, self.choice = getattr(self, row.fault.replace("-", "_")), choice
        self.regions, self.whose = row.where.split(), flushes_of(row)
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
        for region in self.regions:
            vm(*self.whose, "fsync", "fail", "off", region)
            vm(*self.whose, "fsync", "hang", "off", region)
            run("vm", *self.whose, "fsync", "release", region)
        if self.error:
            raise OSError(f"the fault ended: {self.error}")

    def let_recover(self, loss):
        """Of what it has done, if it was one: a machine that is slow would be lost all the time, and promise nothing."""
        wait_until(1, lambda: page_of_r0().loss > loss)
        wait_until(5, lambda: page_of_r0().loss == page_of_r0().acknowledged)
        done = page_of_r0().done
        wait_until(2, lambda: page_of_r0().done > done + 1 or self.ended.is_set())

    def fail(self):
        vm(*self.whose, "fsync", "fail", str(self.choice.randint(1, 12)), self.choice.choice(self.regions))

    def stolen(self):
        """The error is taken by a program that flushes the same device."""
        fd, loss = os.open(DEVICE, os.O_RDONLY), page_of_r0().loss
        vm("fsync", "fail", str(self.choice.randint(1, 4)), "r0")
        try:
            for _ in range(4):
                with contextlib.suppress(OSError):
                    os.fsync(fd)
        finally:
            os.close(fd)
        self.let_recover(loss)

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
            if agent_pid() and page_of_r0().worker:
                kill(page_of_r0().worker)

    def orphan(self):
        """The agent is killed while a flush hangs, and the error comes when the next one is there and has been asked."""
        vm("fsync", "hang", "1", "r0")
        if subprocess.run(["timeout", "5", "vm", "fsync", "wait-hung", "r0"], stdout=subprocess.DEVNULL).returncode == 0:
            before = page_of_r0()
            self.kill_agent()
            if not wait_until(30, lambda: page_of_r0().instance != before.instance):
                raise TimeoutError("no agent comes after the one that was killed")
            self.ended.wait(0.5)
            run("vm", "fsync", "release", "fail", "r0")
            self.let_recover(before.loss)

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


def settle(where):
    """What has been lost is acknowledged, and the regions can be flushed again."""
    def flushed(region):
        if run("pmemctl", "flush", region).returncode == 0:
            return True
        loss = run("busctl", "get-property", "io.pmem.Agent1", f"/io/pmem/Agent1/region/{region}", "io.pmem.Agent1.Region",
                   "Loss").stdout.split()
        run("pmemctl", "acknowledge", region, f"--loss={loss[-1] if loss else 0}")
        return False

    for region in where.split():
        if not wait_until(30, lambda name="region" + region[1:]: flushed(name)):
            raise TimeoutError(f"{region} can't be flushed any more")


# ---- loads ----

def flushes_of(row):
    """Whose flushes reach the host: QEMU's, or those of pmemctl serve."""
    return ["serve"] if row.where == rows.DEVDAX else []


@contextlib.contextmanager
def recorded(row):
    """One trace for each region: NAME, NAME.1 ..."""
    must(LOAD, BOARD, "clear")
    regions = row.where.split()
    for i, region in enumerate(regions):
        vm(*flushes_of(row), "record", "start", row.name + (f".{i}" if i else ""), region, "r1")
    try:
        yield
    finally:
        for region in regions:
            vm(*flushes_of(row), "record", "stop", region)


def make_filesystem(kind, device):
    if kind == "xfs":
        must("mkfs.xfs", "-q", "-f", "-m", "reflink=0", device)
    else:
        must("mkfs.ext4", "-F", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
    must("mount", "-o", "dax=always", device, MOUNT)


def device_of(row):
    """As LVM would have it mapped, where it is a volume."""
    if row.where != rows.STRIPED:
        return vm("dev", row.where)
    devices = [vm("dev", region) for region in row.where.split()]
    size = sum(int(must("blockdev", "--getsz", device)) for device in devices)
    must("dmsetup", "create", "striped", "--uuid", "LVM-prove", "--table",
         f"0 {size} striped 2 128 " + " ".join(f"{device} 0" for device in devices))
    return STRIPED


def clean_up():
    run("umount", MOUNT)
    run("dmsetup", "remove", "striped")


def prepare(row):
    """The target of the load."""
    device = device_of(row)
    if not row.images and row.where != rows.DEVDAX:
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


@contextlib.contextmanager
def served(row):
    """What only the host flushes, or demands, needs pmemctl serve there."""
    if row.where != rows.DEVDAX and row.flush != "host":
        yield
        return
    vm("serve", "start")
    try:
        settle(row.where)
        yield
    finally:
        vm("serve", "stop")
        vm("host", "connect")


def command_of(row, target, seconds):
    if row.store == "program":
        words = ["/usr/bin/python3", "/root/prove/programs.py", row.flush, MOUNT, BOARD, str(row.promises)]
    else:
        words = [LOAD, BOARD, row.store, row.flush, target, f"{'p' if row.processes else ''}{row.lanes}",
                 str(row.promises), str(seconds)]
    return ["pmemctl", "run", "--", *words] if row.preload else words


def orphaned(row, target):
    """A flush takes a page along and hangs, and the agent is killed. Who asks the next one for the same page, which then is
    lost with the first flush, is not to be told that it is durable."""
    for turn in range(1, row.promises + 1):
        settle(row.where)
        must(LOAD, BOARD, "put", target, "0", str(2 * turn - 1))
        must(LOAD, BOARD, "ask", target, "0", str(2 * turn - 1))
        must(LOAD, BOARD, "put", target, "0", str(2 * turn))
        vm("fsync", "hang", "1", "r0")
        first = subprocess.Popen(["pmemctl", "flush", "region0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        must("timeout", "60", "vm", "fsync", "wait-hung", "r0")
        kill(agent_pid())
        must("systemctl", "start", "pmem-agent.socket", "pmem-agent.service")
        second = subprocess.Popen(["sh", "-c", f"pmemctl flush region0 && {LOAD} {BOARD} note 0 0 {2 * turn}"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        threading.Event().wait(1)       # it has asked by then, most likely
        vm("fsync", "release", "fail", "r0")
        first.wait(LIMIT)
        second.wait(LIMIT)
    return f"{row.promises} turns", row.promises


@contextlib.contextmanager
def kill_at(pid, step):
    """Kills it at its Nth step from now on; gives a function that says how, when the time is over."""
    with subprocess.Popen([KILL_AT, str(pid), str(step)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as killer:
        said = killer.stdout.readline()
        if said != "ready\n":
            raise OSError(f"kill-at does not follow {pid}: {said}")

        def end(seconds):
            with contextlib.suppress(subprocess.TimeoutExpired):
                killer.wait(seconds)
            killer.terminate()
            return killer.stdout.read().strip()

        yield end


def count_switches(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return re.search(r"^voluntary_ctxt_switches:\s*(\d+)", f.read(), re.M)[1]


def wait_until_quiet(pid):
    """An agent that has just started makes steps that have nothing to do with a request."""
    before, now = None, count_switches(pid)
    while now != before:
        threading.Event().wait(0.5)
        before, now = now, count_switches(pid)


def kill_in_step(row, target, turn, step):
    """A page is stored, flushed for, and the agent or its worker killed at its Nth step from now on; then somebody asks
    again, without storing it anew. How it was killed, and the last answer. What is stored rises with the turn, from 0."""
    def put_and_ask(number):
        must(LOAD, BOARD, "put", target, slot, str(number))
        return lambda: must(LOAD, BOARD, "ask", target, slot, str(number)).strip()

    slot = str(turn % 8)
    put_and_ask(2 * turn + 1)()
    ask = put_and_ask(2 * turn + 2)
    if row.fault:
        vm("fsync", "fail", "1", "r0")
    pid = agent_pid() if row.flush == "agent" else page_of_r0().worker
    wait_until_quiet(pid)
    with kill_at(pid, step) as end:
        answers = [ask()]
        how = end(1)    # what it still does after it has answered
    if row.fault:
        vm("fsync", "fail", "off", "r0")
    if row.flush == "agent":
        forgive_restarts()
        must("systemctl", "start", "pmem-agent.socket", "pmem-agent.service")
    answers.append(ask())
    print(f"# {row.name} {step}: {how}; {', '.join(answers)}", flush=True)
    return how, answers[-1]


def kill_in_steps(row, target, choice):
    """At each of those that it makes for a request, as counted before; or at one of so many, from which the seed says."""
    how, answer = kill_in_step(row, target, 0, MANY)
    n = int(how.split()[-1])
    if not how.startswith("alive after ") or n < 10:
        raise OSError(f"a round of so many steps: {how}")
    killed = 0
    steps = range(choice.randint(1, row.every), n + 1, row.every)
    for turn, step in enumerate(steps, 1):
        if answer != "durable":
            settle(row.where)
        how, answer = kill_in_step(row, target, turn, step)
        killed += how.startswith("killed")
    if killed < len(steps) * 3 // 4:
        raise OSError(f"killed {killed} times in {len(steps)} of {n} steps")
    return f"killed {killed} times in {len(steps)} of {n} steps", killed


def do_load(row, choice):
    """What the load said, and how many faults there were."""
    target = prepare(row)
    if row.delay:
        vm("fsync", "delay", str(row.delay), "r0")
    with recorded(row):
        if row.store == "steps":
            return kill_in_steps(row, target, choice)
        if row.store == "orphan":
            return orphaned(row, target)
        fault = Fault(row, choice) if row.fault else None
        if fault:
            fault.start()
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


def shrink(row, wrong):
    """A cut that shows the same, as early as there is one and with as little leaked."""
    lines, feedback = wrong.splitlines(), []
    while "shrunk" not in (cut := json.loads(vm("replay", "shrink", "r2", *feedback))):
        found = look_at(row, cut)
        feedback = ["broken" if found else "whole"]
        lines = found.splitlines() or lines
    return {**cut, "wrong": (look_at(row, cut).splitlines() or lines)[:4]}


def look_at_all(row, seed):
    os.makedirs(IMAGE, exist_ok=True)
    n_images = int(vm("replay", "start", row.name, str(row.images), str(seed)))
    n, promises, violations = 0, 0, []
    while line := vm("replay", "next", "r2"):
        cut = json.loads(line)
        n += 1
        promises += cut["told"]
        wrong = look_at(row, cut)
        if wrong:
            violations.append(cut if violations else shrink(row, wrong))
            if row.control:
                break
    return {"points": n, "images": n_images, "checked": promises, "violations": violations}


def do_row(row, seed):
    choice = random.Random(f"{seed} {row.name}")
    if row.agent:
        use_agent(f"/root/controls/{row.agent}")
    with served(row):
        try:
            said, faults = do_load(row, choice)
            result = {"row": row.name, "faults": faults, "said": said}
        finally:
            clean_up()
        if row.images:
            result.update(look_at_all(row, seed))
        if row.agent:
            use_agent(None)
        print("ROW " + json.dumps(result), flush=True)
        settle(row.where)


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
