#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""One user floods a region with more requests than are let in: those of another wait no longer than the rounds make them.

The flood comes from more clients than one user may have connections, each with one of 64 files, and the queue is small
enough that one user's quarter of it is less than those connections. Measured with the flood and without, by turns.

A wait is counted in the rounds that end in it, its own included: this is what the queue answers for, however slow the
machine is. A request that comes after a round has begun waits for two. It seems to wait for a third if it comes when the
next has begun and nobody has been told yet of the one before: on a busy machine that is some of them, and never half. In
time it is reported only: there it depends on who gets this machine's CPUs, too, and when.
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
MEDIAN_ROUNDS, MAX_ROUNDS = 2, 3
DELAY = 100000  # of a flush: to wake a hundred clients takes 20 ms in a guest without KVM


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Clock:
    """Of rounds: each ends when the first client is told of it."""

    def __init__(self, answers):
        self.end_of = {}
        for _, ended, _, epoch in answers:
            if epoch:
                self.end_of[epoch] = min(ended, self.end_of.get(epoch, ended))
        self.ends = sorted(self.end_of.values())

    def mean(self):
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)

    def rounds(self, row):
        """That ended while it waited, its own included."""
        begun, _, _, epoch = row
        return bisect.bisect_right(self.ends, self.end_of[epoch]) - bisect.bisect_right(self.ends, begun)

    def late(self, row):
        """How long after the first of its round it was told, in rounds."""
        _, ended, _, epoch = row
        return (ended - self.end_of[epoch]) / self.mean()


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
    clock = Clock(answers + theirs)
    took, late = [row[1] - row[0] for row in answers], [clock.late(row) for row in answers]
    waits = [clock.rounds(row) for row in answers if row[0] >= clock.ends[0]]
    comment(f"{name}: {len(took)} answers, median {statistics.median(took) / 1000:.1f} ms, p99 "
            f"{percentile(took, 0.99) / 1000:.1f} ms, a round every {clock.mean() / 1000:.1f} ms; told after the first "
            f"of its round: median {statistics.median(late):.2f}, p99 {percentile(late, 0.99):.2f} rounds; "
            f"rounds waited for: {dict(sorted(collections.Counter(waits).items()))}")
    return waits


def judge_flood(theirs, waiting):
    counts = collections.Counter(row[2] for row in theirs)
    comment(f"the flooder was told: {dict(counts)}; {waiting} requests wait")
    check("the flooder gets EBUSY, and nothing else but durable", counts["EBUSY"] > FLOOD and counts["durable"] > 0 and
          counts["EBUSY"] + counts["durable"] == len(theirs), counts)
    most = max(collections.Counter(row[3] for row in theirs if row[2] == "durable").values())
    check(f"at its bound: at most {most} of its requests had part in one round, of {QUOTA} that may wait",
          QUOTA // 2 < most <= QUOTA)
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


def main():
    files, waits = prepare(), []
    for _ in range(TURNS):
        answers, _, _ = measure(files, False)
        report("alone", answers, [])
        answers, theirs, waiting = measure(files, True)
        waits += report("flooded", answers, theirs)
        judge_flood(theirs, waiting)
        check("nothing but durable for the other", all(row[2] == "durable" for row in answers))
    median, p99 = percentile(waits, 0.5), percentile(waits, 0.99)
    check(f"flooded, {len(waits)} requests of the other waited for {median} rounds, p99 {p99}; at most {MEDIAN_ROUNDS} and "
          f"{MAX_ROUNDS}", len(waits) >= 100 and median <= MEDIAN_ROUNDS and p99 <= MAX_ROUNDS)
    finish()


main()
