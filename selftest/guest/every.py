#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Nth flush of the host fails, for every N, under load: nobody is told durable after it until it is acknowledged.

usage: every.py THIEF FIRST LAST

THIEF, besides the clients of the agent, may take the error: nobody, fsync (a program that calls it on the block device)
or journal (one that makes files on the filesystem there, so that the journal commits). Of the last N the loss is left
as it is, for the script that comes after the reboot.
"""

import glob
import os
import sys
import threading

import judge
from testlib import Load, check, finish, region_property, run, vm

DEVICE, CLIENTS = "/dev/pmem0", 16


class Thief(threading.Thread):
    """Flushes without the agent, as other programs do."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.stopped = kind, threading.Event()

    def run(self):
        n = 0
        while self.kind != "nobody" and not self.stopped.wait(0.005):
            n += 1
            try:
                if self.kind == "fsync":
                    fd = os.open(DEVICE, os.O_RDONLY)
                    os.fsync(fd)
                    os.close(fd)
                else:
                    os.mkdir(f"/mnt/{n}")
                    os.sync()
            except OSError:
                pass

    def end(self):
        self.stopped.set()
        self.join()


def prepare(kind):
    run("umount", "/mnt")
    if kind == "journal":
        assert run("mkfs.ext4", "-F", "-q", "-b", "4096", DEVICE).returncode == 0
        assert run("mount", "-o", "dax=always", DEVICE, "/mnt").returncode == 0


def lose(kind, n):
    """(answers, flushes, whether the clients noticed, and again after the agent's end): flush n of them fails."""
    prepare(kind)
    before = int(vm("fsync", "count", "r0"))
    vm("fsync", "fail", str(n), "r0")
    load = Load(CLIENTS, "region", DEVICE)
    thief = Thief(kind)
    thief.start()
    noticed = load.wait_for("EIO")
    return before, load, thief, noticed


def one(kind, n):
    before, load, thief, noticed = lose(kind, n)
    end = {0: "restart", 2: "kill"}.get(n % 5)
    if end:
        run("systemctl", "reset-failed", "pmem-agent")
        run("systemctl", *(["restart"] if end == "restart" else ["kill", "-s", "KILL"]), "pmem-agent")
    again = load.wait_for("EIO")
    thief.end()
    answers = load.end()

    flushes = [row for row in judge.read_flushes(vm("fsync", "log", "r0")) if row[0] > before]
    failed = [row[0] for row in flushes if not row[3]]
    lies = judge.find_lies(answers, flushes, before + n)
    durable = sum(row[2] == "durable" for row in answers)
    check(f"N = {n}: lost{', and after a ' + end if end else ''}; {durable} durable answers, none a lie",
          noticed and again and failed == [before + n] and not lies,
          f"noticed {noticed}, again {again}, failed {failed} of {before + n}, lies {lies[:3]}")


def acknowledge(n):
    r = run("pmemctl", "acknowledge", "region0", f"--loss={region_property('Loss')}")
    f = run("pmemctl", "flush", "region0")
    if r.returncode or f.returncode:
        check(f"N = {n}: acknowledged, it serves again", False, r.stdout + f.stdout)


def control(n):
    """An agent that has forgotten the loss says durable again, and the judge calls that a lie."""
    before, load, thief, _ = lose("fsync", n)
    run("systemctl", "stop", "pmem-agent")
    for path in glob.glob("/run/pmem-agent/*.page") + glob.glob("/var/lib/pmem-agent/*.loss"):
        os.unlink(path)
    run("systemctl", "start", "pmem-agent")
    load.wait_for("durable")
    thief.end()
    answers = load.end()
    flushes = [row for row in judge.read_flushes(vm("fsync", "log", "r0")) if row[0] > before]
    check("control: of an agent that forgets a loss, lies are found", judge.find_lies(answers, flushes, before + n))


def main():
    kind, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    vm("fsync", "delay", "3000", "r0")
    if kind == "fsync":
        vm("set-clock")
        control(3)
    for n in range(first, last + 1):
        vm("set-clock")
        one(kind, n)
        if n < last:
            acknowledge(n)
    finish()


if __name__ == "__main__":
    main()
