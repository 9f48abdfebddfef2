#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent, or the worker of the region, is killed at any moment of a round: nobody is told durable wrongly.

usage: kill.py TIMES [SEED]

After each time the agent that systemd has started again serves, once a loss is acknowledged: a worker that is killed in
mid-round takes the outcome with it, and that is a loss. An agent that is killed leaves its worker behind, and its page.
"""

import collections
import random
import sys
import threading

import judge
from testlib import (Load, acknowledge, agent_pid, check, comment, finish, kill, read_page, run, vm, wait_for_next,
                     wait_until)

DEVICE, CLIENTS, DELAY = "/dev/pmem0", 16, 0.02


def serve_again():
    """Whether a flush is confirmed again; what was lost is acknowledged."""
    def flushed():
        status = run("pmemctl", "flush", "region0").returncode
        if status == 3:
            acknowledge()
        return status == 0

    return wait_until(30, flushed)


def kill_one(victim, pause):
    """(whether a round was under way when it died, whether that is a loss)."""
    before = read_page()
    pid = agent_pid() if victim == "agent" else before.worker
    threading.Event().wait(pause)
    page = kill(pid)
    if victim == "agent":
        wait_for_next(before.instance)
    lost = run("pmemctl", "flush", "region0").returncode == 3
    # The next worker may have begun a round already.
    return page.started > page.done and (victim == "agent" or page.worker == pid), lost


def judge_all(rows, count):
    flushes = judge.read_flushes(vm("fsync", "log", "r0"))
    wrong = [f"time {i}: {lies[:3]}" for i, lies in
             ((i, judge.find_lies(answers, flushes)) for i, answers in enumerate(rows)) if lies]
    durable = sum(row[2] == "durable" for answers in rows for row in answers)
    check(f"none of {durable} durable answers is a lie, by {len(flushes)} flushes of the host",
          not wrong and durable > 20 * len(rows), "\n".join(wrong))
    for (victim, mid, lost), n in sorted(count.items()):
        comment(f"{victim} killed {'in mid-round' if mid else 'between rounds'}: {n} times{', a loss' if lost else ''}")
    for victim in ("agent", "worker"):
        check(f"the {victim} died in mid-round, more than once", sum(
            n for (who, mid, _), n in count.items() if who == victim and mid) > 1)
    check("a worker killed in mid-round is a loss, always", not count["worker", True, False])
    check("an agent that is killed is none: its worker goes on",
          not count["agent", True, True] and not count["agent", False, True])


def main():
    times = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    comment(f"seed {seed}")
    choice = random.Random(seed)
    vm("fsync", "delay", str(int(DELAY * 1e6)), "r0")
    run("systemctl", "start", "pmem-agent")
    count, rows = collections.Counter(), []
    for i in range(times):
        victim = ("agent", "worker")[i % 2]
        vm("set-clock")
        if victim == "agent":
            run("systemctl", "reset-failed", "pmem-agent")  # the count of starts
        load = Load(CLIENTS, "region", DEVICE)
        served = load.wait_for("durable", 1)
        mid, lost = kill_one(victim, choice.random() * 3 * DELAY)
        count[victim, mid, lost] += 1
        again = serve_again() and load.wait_for("durable", 1)
        rows.append(load.end())
        check(f"{victim} killed {'in mid-round' if mid else 'between rounds'}{', a loss' if lost else ''}: "
              f"it serves again", served and again, f"served {served}, {load.counts}")
    judge_all(rows, count)
    finish()


main()
