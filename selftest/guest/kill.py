#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent, or the worker of the region, is killed at any moment of a round: nobody is told durable wrongly.

usage: kill.py TIMES

After each time the agent that systemd has started again serves, once a loss is acknowledged: a worker that is killed in
mid-round takes the outcome with it, and that is a loss.
"""

import os
import random
import signal
import struct
import sys
import threading

import judge
from testlib import Load, check, finish, region_property, run, vm, wait_until

DEVICE, CLIENTS, DELAY = "/dev/pmem0", 16, 0.02


def pid_of(victim):
    if victim == "agent":
        return int(run("systemctl", "show", "-P", "MainPID", "pmem-agent").stdout)
    with open(region_property("Page").strip('"'), "rb") as page:
        return struct.unpack_from("=I", page.read(), 288)[0]


def serve_again():
    """Whether a flush is confirmed again; what was lost is acknowledged."""
    def flushed():
        status = run("pmemctl", "flush", "region0").returncode
        if status == 3:
            run("pmemctl", "acknowledge", "region0", f"--loss={region_property('Loss')}")
        return status == 0

    return wait_until(30, flushed)


def main():
    times = int(sys.argv[1])
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"# seed {seed}", flush=True)
    choice = random.Random(seed)
    vm("fsync", "delay", str(int(DELAY * 1e6)), "r0")
    run("pmemctl", "flush", "region0")
    losses = {"agent": 0, "worker": 0}
    for i in range(times):
        victim = ("agent", "worker")[i % 2]
        vm("set-clock")
        before = int(vm("fsync", "count", "r0"))
        run("systemctl", "reset-failed", "pmem-agent")
        load = Load(CLIENTS, "region", DEVICE)
        load.wait_for("durable", 1)
        pid = pid_of(victim)
        threading.Event().wait(choice.random() * 3 * DELAY)
        os.kill(pid, signal.SIGKILL)
        wait_until(10, lambda: pid_of("agent") not in (0, pid) or victim == "worker")
        lost = run("pmemctl", "flush", "region0").returncode == 3
        losses[victim] += lost
        served = serve_again()
        again = load.wait_for("durable", 1)
        answers = load.end()
        flushes = [row for row in judge.read_flushes(vm("fsync", "log", "r0")) if row[0] > before]
        lies = judge.find_lies(answers, flushes)
        if lies or not served or not again:
            check(f"{victim} killed, time {i}", False, f"served {served}, again {again}, lies {lies[:3]}")
    check(f"{times} times killed: no lie, and it serves again", True)
    check("a worker killed in mid-round is a loss", losses["worker"] > 0, losses)
    check("an agent that is killed is none: its worker goes on", losses["agent"] == 0, losses)
    finish()


if __name__ == "__main__":
    main()
