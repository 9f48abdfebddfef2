#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A flush of the host hangs for just more than the stall time, and for ten times that, under load.

Meanwhile nobody is told durable, no second flush goes beside it, and callers with a deadline are told in time. It is
over as soon as the host answers, and everyone is told: those it was for, and the others of a flush that came after them.
"""

import re
import time

import judge
from testlib import Load, check, comment, finish, region_property, run, vm, wait_until

DEVICE, CLIENTS, STALL, CONF = "/dev/pmem0", 16, 1, "/etc/pmem-agent.conf"
TIMEOUT = 18


def set_stall_time():
    with open(CONF, encoding="utf-8") as f:
        text, n = re.subn(r"(?m)^#StallSec=.*$", f"StallSec={STALL}", f.read())
    with open(CONF, "w", encoding="utf-8") as f:
        f.write(text)
    return n == 1


def hold(until):
    """Callers with deadlines, one after the other, the last of them when it is to be released: what each was told."""
    told = []
    while not told or until - time.monotonic() > 0.1:
        left = until - time.monotonic()
        told.append(run("pmemctl", "flush", f"--timeout={min(max(left, 0.3), 3.0):.3f}", "region0").returncode)
    return told


def events(since, name):
    return len(re.findall(f'"{name}"', vm("host", "lines", "--since", since)))


def judge_answers(text, answers, number):
    """`number`: the flush that hung."""
    flushes = judge.read_flushes(vm("fsync", "log", "r0"))
    begun, ended = next((b, e) for n, b, e, _ in flushes if n == number)
    lies = judge.find_lies(answers, flushes)
    check(f"{text}: no durable answer is a lie", not lies, lies[:3])
    late = [row for row in answers if row[0] < begun < ended - judge.TOLERANCE < row[1]]
    check("those it was for were told durable by it", late and all(row[2] == "durable" for row in late))
    epoch = min((row[3] for row in late), default=0)
    early = [row for row in answers if row[3] >= epoch and row[1] < ended - judge.MAX_OFFSET]
    check("nobody was told that before", not early, early[:3])
    check("nobody was told anything else", all(row[2] == "durable" for row in answers))


def hang(times):
    text = f"{times} stall time{'s' if times > 1 else ''}"
    vm("set-clock")
    since = vm("host", "count")
    load = Load(CLIENTS, "region", DEVICE)
    check(f"{text}: served before", load.wait_for("durable", 1), load.counts)
    vm("fsync", "hang", "1", "r0")
    number = int(vm("fsync", "wait-hung", "r0").split()[1])
    began = time.monotonic()
    told = hold(began + 0.5)
    check("before it stalls, who has a deadline is told unknown", told and set(told) == {TIMEOUT}, told)
    vm("host", "wait", '"STALLED".*"region0"', "--since", since, "--timeout", "10")
    took = time.monotonic() - began
    check(f"the host reads STALLED, {took:.2f} s after it began to hang", took > 0.9 * STALL)
    check("so does who asks", region_property("State") == "stalled")
    told = hold(began + times * STALL)
    check(f"{len(told)} callers with a deadline were told unknown", set(told) == {TIMEOUT}, told)
    check("it is still stalled, and there was no flush beside it",
          region_property("State") == "stalled" and int(vm("fsync", "count", "r0")) == number)
    comment(f"released after {time.monotonic() - began:.2f} s")
    vm("fsync", "release", "r0")
    vm("host", "wait", '"RECOVERED".*"region0"', "--since", since, "--timeout", "10")
    check("the host reads RECOVERED, and it serves again", load.wait_for("durable"), load.counts)
    answers = load.end()
    check("nothing is lost", wait_until(10, lambda: region_property("State") == "idle"))
    check("one stall, one recovery", (events(since, "STALLED"), events(since, "RECOVERED")) == (1, 1))
    judge_answers(text, answers, number)


check(f"StallSec={STALL}", set_stall_time())
check("the agent starts", run("systemctl", "start", "pmem-agent").returncode == 0)
vm("host", "wait", '"pmem-agent"', "--timeout", "30")
vm("fsync", "delay", "20000", "r0")
hang(1)
hang(10)
finish()
