#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Nth flush of the host fails, for every N, under load: nobody is told durable after it until it is acknowledged.

usage: every.py THIEF FIRST LAST
       every.py after-reboot

THIEF, besides the clients of the agent, may take the error: nobody, fsync (a program that calls it on the block device)
or journal (one that makes files on the filesystem there, so that the journal commits). With nobody it is counted from
the first flush of the load, with a thief from when it begins beside the load. Of the last N the loss is left as it is,
for after-reboot.
"""

import glob
import os
import sys
import threading

import judge
from testlib import (ORIGIN_ROUND, ORIGIN_WITNESS, Load, acknowledge, agent_pid, check, comment, finish, kill,
                     read_page, restart, run, vm, wait_for_next)

DEVICE, CLIENTS = "/dev/pmem0", 8
ENDS = {2: "kill", 5: "restart", 7: "kill"}  # of the agent, by the last digit of N


class Thief(threading.Thread):
    """Flushes without the agent, as other programs do."""

    def __init__(self, kind):
        super().__init__(daemon=True)
        self.kind, self.stopped, self.n_errors = kind, threading.Event(), 0

    def flush(self, n):
        if self.kind == "journal":
            os.mkdir(f"/mnt/{n}")
        fd = os.open("/mnt" if self.kind == "journal" else DEVICE, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def run(self):
        n = 0
        while not self.stopped.wait(0.002):
            n += 1
            try:
                self.flush(n)
            except OSError:
                self.n_errors += 1

    def end(self):
        self.stopped.set()
        if self.is_alive():
            self.join()


def mount():
    """A new filesystem: the journal of the old one may have aborted."""
    run("umount", "/mnt")
    for command in (("mkfs.ext4", "-F", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", DEVICE),
                    ("mount", "-o", "dax=always", DEVICE, "/mnt")):
        r = run(*command)
        if r.returncode != 0:
            raise OSError(r.stdout)


def lose(kind, n):
    """A load of whose flushes one fails, and whether its clients were served before and told of it."""
    thief, served = Thief(kind), True
    if kind == "nobody":
        vm("fsync", "fail", str(n), "r0")
        load = Load(CLIENTS, "region", DEVICE)
    else:
        load = Load(CLIENTS, "region", DEVICE)
        served = load.wait_for("durable", 1)
        vm("fsync", "fail", str(n), "r0")
        thief.start()
    return load, thief, served and load.wait_for("EIO", 1)


def end_agent(end):
    if end == "restart":
        restart()
    elif end == "kill":
        before = read_page().instance
        kill(agent_pid())
        wait_for_next(before)


class Results:
    """What the clients were told, to be compared with what the host did when all is over."""

    def __init__(self):
        self.rows, self.origins, self.n_durable = [], [], 0

    def add(self, n, before, answers):
        durable = sum(row[2] == "durable" for row in answers)
        self.rows.append((n, before, answers))
        self.origins.append(read_page().loss_origin)
        self.n_durable += durable
        return durable

    def judge(self, kind):
        flushes = judge.read_flushes(vm("fsync", "log", "r0"))
        wrong = []
        for i, (n, before, answers) in enumerate(self.rows):
            after = self.rows[i + 1][1] if i + 1 < len(self.rows) else flushes[-1][0]
            failed = [row[0] for row in flushes if before < row[0] <= after and not row[3]]
            if len(failed) != 1 or (kind == "nobody" and failed[0] != before + n):
                wrong.append(f"N = {n}: of the flushes from {before + 1} to {after} failed {failed}")
                continue
            lies = judge.find_lies(answers, flushes, failed[0])
            if lies:
                wrong.append(f"N = {n}: flush {failed[0]} failed, {len(lies)} durable answers are lies: {lies[:3]}")
        check(f"none of {self.n_durable} durable answers is a lie, by {len(flushes)} flushes of the host", not wrong,
              "\n".join(wrong))
        check("that many there are", self.n_durable > 10 * len(self.rows), self.n_durable)
        own, others = self.origins.count(ORIGIN_ROUND), self.origins.count(ORIGIN_WITNESS)
        comment(f"the agent took the error {own} times, another {others} times")
        check("each loss is one or the other", own + others == len(self.rows), self.origins)
        check("the thief takes it, and the agent",
              others == 0 if kind == "nobody" else others > len(self.rows) // 25 and own > 0)


def one(kind, n, results):
    before = int(vm("fsync", "count", "r0"))
    load, thief, told = lose(kind, n)
    end = ENDS.get(n % 10)
    if told and end:
        end_agent(end)
        # One answer may be that the connection has ended.
        told = load.wait_for("EIO", 2)
    thief.end()
    durable = results.add(n, before, load.end())
    check(f"N = {n}: lost{', and after a ' + end if end else ''}; {durable} durable answers",
          told and (kind != "nobody" or durable >= n - 1), load.counts)
    if kind == "journal" and thief.n_errors:
        mount()


def control(n):
    """An agent that has forgotten the loss says durable again, and the judge calls that a lie."""
    before = int(vm("fsync", "count", "r0"))
    load, thief, _ = lose("fsync", n)
    run("systemctl", "stop", "pmem-agent")
    for path in glob.glob("/run/pmem-agent/*.page") + glob.glob("/var/lib/pmem-agent/*.loss"):
        os.unlink(path)
    run("systemctl", "start", "pmem-agent")
    load.wait_for("durable")
    thief.end()
    answers = load.end()
    flushes = judge.read_flushes(vm("fsync", "log", "r0"))
    failed = [row[0] for row in flushes if row[0] > before and not row[3]]
    check("control: of an agent that forgets a loss, lies are found",
          len(failed) == 1 and judge.find_lies(answers, flushes, failed[0]), failed)


def every(kind, first, last):
    results = Results()
    vm("fsync", "delay", "6000", "r0")
    vm("set-clock")
    if kind == "fsync":
        control(3)
    if kind == "journal":
        mount()
    for n in range(first, last + 1):
        vm("set-clock")
        one(kind, n, results)
        if n < last and acknowledge().returncode != 0:
            check(f"N = {n}: acknowledged", False)
    results.judge(kind)


def after_reboot():
    load = Load(CLIENTS, "region", DEVICE)
    check("lost after the reboot", load.wait_for("EIO"), load.counts)
    check("by its exit status too", run("pmemctl", "flush", "region0").returncode == 3)
    check("nobody was told durable", load.count("durable") == 0, load.counts)
    r = acknowledge()
    check("acknowledged", r.returncode == 0, r.stdout)
    check("it serves again", load.wait_for("durable"), load.counts)
    load.end()
    check("and a flush of its own", run("pmemctl", "flush", "region0").returncode == 0)


if sys.argv[1:] == ["after-reboot"]:
    after_reboot()
else:
    every(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
finish()
