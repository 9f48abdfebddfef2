#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""One user floods a region with more requests than are let in: those of another wait no longer than the rounds make them.

The flood comes from more clients than one user may have connections, each with one of 64 files, and the queue is small
enough that one user's quarter of it is less than those connections. Measured with the flood and without, by turns.

A wait is counted in the rounds that began in it, its own included, by the time that each answer gives for its own: this
is what the queue answers for, however slow the machine is, and the agent's clock is the clients'. One is the rule. A
request that was on its way while a round began waits for two, and no request is on its way as long as a round lasts.
In time a wait is reported only: that depends on who gets this machine's CPUs, too, and when.
"""

import bisect
import collections
import os
import re
import statistics
import threading

from testlib import Load, check, comment, finish, region_property, run, vm

FLOODER, OTHER, CLIENTS, FLOOD, FILES, TURNS, SECONDS = 1001, 1002, 8, 300, 64, 2, 5
DEPTH, CONF = 256, "/etc/pmem-agent.conf"
QUOTA = 1 + (DEPTH - 1) // 4
MEDIAN_ROUNDS, P99_ROUNDS = 1, 2
DELAY = 100000  # of a flush: to wake a hundred clients takes 20 ms in a guest without KVM


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def begins(answers):
    """When each round began of which anybody was told."""
    return sorted({before for *_, before in answers if before})


def count_rounds(row, begins):
    """That began while it waited, its own included."""
    begun, *_, before = row
    return bisect.bisect_right(begins, before) - bisect.bisect_left(begins, begun)


def measure(files, flood):
    """(answers of the other, of the flooder, requests that wait), all of one time."""
    # With what CPUs the other and the agent leave it: how those are shared out is the kernel's.
    flooder = Load(FLOOD, "file-data", *files, uid=FLOODER, nice=19) if flood else None
    other = Load(CLIENTS, "region", files[0], uid=OTHER)
    other.wait_for("durable", 2)
    if flood:
        flooder.wait_for("EBUSY", 1)
    first = len(other.answers())
    threading.Event().wait(SECONDS)  # that is what is measured
    answers = other.answers()[first:]
    waiting = int(region_property("Waiting"))
    theirs = flooder.end() if flood else []
    other.end()
    return answers, theirs, waiting


def report(name, answers, theirs):
    """How many rounds each waited for."""
    rounds, took = begins(answers + theirs), [row[1] - row[0] for row in answers]
    waits = [count_rounds(row, rounds) for row in answers if row[2] == "durable"]
    comment(f"{name}: {len(took)} answers, median {statistics.median(took) / 1000:.1f} ms, p99 "
            f"{percentile(took, 0.99) / 1000:.1f} ms; a round every "
            f"{(rounds[-1] - rounds[0]) / (len(rounds) - 1) / 1000:.1f} ms; "
            f"rounds waited for: {dict(sorted(collections.Counter(waits).items()))}")
    return waits


def judge_flood(theirs, waiting):
    counts = collections.Counter(row[2] for row in theirs)
    comment(f"the flooder was told: {dict(counts)}; {waiting} requests wait")
    check("the flooder gets EBUSY, and nothing else but durable", counts["EBUSY"] > FLOOD and counts["durable"] > 0 and
          counts["EBUSY"] + counts["durable"] == len(theirs), counts)
    most = max(collections.Counter(row[3] for row in theirs if row[2] == "durable").values())
    check(f"at its bound: at most {most} of its requests had part in one round, of {QUOTA} that may wait",
          QUOTA // 4 < most <= QUOTA)
    check("no more wait than both may", waiting <= QUOTA + CLIENTS, waiting)


def prepare():
    """The files of the flood."""
    with open(CONF, encoding="utf-8") as f:
        text, n = re.subn(r"(?m)^#QueueDepth=.*$", f"QueueDepth={DEPTH}", f.read())
    with open(CONF, "w", encoding="utf-8") as f:
        f.write(text)
    check(f"QueueDepth={DEPTH}", n == 1)
    check("ext4 with DAX", run("sh", "-c", ". /root/guest/lib.sh; mkdax /dev/pmem0 /mnt").returncode == 0)
    os.chmod("/root", 0o755)
    files = [f"/mnt/{i}" for i in range(FILES)]
    for path in files:
        with open(path, "w", encoding="ascii") as f:
            f.write("data\n")
    check("the agent starts", run("systemctl", "start", "pmem-agent").returncode == 0)
    vm("fsync", "delay", str(DELAY), "r0")
    return files


def is_fair(waits):
    return percentile(waits, 0.5) <= MEDIAN_ROUNDS and percentile(waits, 0.99) <= P99_ROUNDS


def main():
    files, waits = prepare(), []
    for _ in range(TURNS):
        answers, _, _ = measure(files, False)
        report("alone", answers, [])
        answers, theirs, waiting = measure(files, True)
        waits += report("flooded", answers, theirs)
        judge_flood(theirs, waiting)
        check("nothing but durable for the other", all(row[2] == "durable" for row in answers))
    check(f"flooded, {len(waits)} requests of the other waited for {percentile(waits, 0.5)} round, p99 "
          f"{percentile(waits, 0.99)}; at most {MEDIAN_ROUNDS} and {P99_ROUNDS}", len(waits) >= 100 and is_fair(waits))
    check("each began after it was asked for", min(waits) >= 1)
    run("sh", "-c", ". /root/guest/lib.sh; use_agent /root/small-rounds")
    answers, theirs, _ = measure(files, True)
    check("control: an agent whose rounds leave some waiting is not fair", not is_fair(report("control", answers, theirs)))
    finish()


main()
