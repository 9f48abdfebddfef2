# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rows of the campaign: what is stored, who flushes it, and what goes wrong meanwhile."""

import collections

Row = collections.namedtuple("Row", "name store flush lanes promises filesystem images preload fault delay seconds agent"
                                    " control where processes every",
                             defaults=("", 0, False, "", 0, 0, "", False, "r0", False, 1))

# Where: the regions that are written to, of which power is cut for all at once. r3 and r4 are what rows of their own
# want: the other half of a striped volume, and device-dax, which only pmemctl serve on the host can flush.
STRIPED, DEVDAX, PRIVATE = "r0 r3", "r4", "r5"

# name, store, flush, lanes, promises; see load-cut.c. With `images` that many cut points are mounted and looked at,
# else the pages are fixed and the host judges every moment.
WORKLOADS = [
    Row("raw-socket", "direct", "region", 16, 800),
    Row("raw-bus", "direct", "bus", 8, 300),
    Row("fixed-file", "map", "file", 8, 300, "ext4"),
    Row("fixed-region", "map", "region", 8, 300, "ext4"),
    Row("fixed-msync", "map", "msync", 8, 300, "ext4", preload=True),
    Row("fixed-fdatasync", "map", "fdatasync", 8, 200, "ext4", preload=True),
    Row("processes", "direct", "region", 12, 400, processes=True),
    Row("processes-msync", "map", "msync", 8, 250, "ext4", preload=True, processes=True),
    Row("striped", "direct", "region", 8, 300, where=STRIPED),
    Row("striped-file", "map", "file", 8, 250, "ext4", where=STRIPED),
    Row("striped-msync", "map", "msync", 8, 200, "ext4", preload=True, where=STRIPED),
    Row("pmem2", "map", "persist", 8, 250, "ext4"),
    Row("pmem2-devdax", "map", "persist", 8, 150, where=DEVDAX),
    Row("devdax", "map", "region", 8, 250, where=DEVDAX),
    Row("host-demands", "direct", "host", 4, 40),
    Row("host-demands-file", "map", "host", 4, 30, "ext4"),
    Row("fresh-file", "fresh", "file", 4, 300, "ext4", 20),
    Row("fresh-msync", "fresh", "msync", 4, 300, "ext4", 20, preload=True),
    Row("fresh-one", "fresh", "msync", 1, 100, "ext4", 20, preload=True),
    Row("metadata-file", "meta", "file", 4, 300, "ext4", 20),
    Row("metadata-fsync", "meta", "fsync", 4, 300, "ext4", 20, preload=True),
    Row("sqlite", "program", "sqlite", 1, 60, "ext4", 20, preload=True),
    Row("lmdb", "program", "lmdb", 1, 60, "ext4", 20, preload=True),
    Row("shell", "program", "shell", 1, 30, "ext4", 15),
]

FAULTS = [
    Row("nth-fails", "direct", "region", 8, 1500, fault="fail", seconds=15),
    Row("nth-fails-bus", "direct", "bus", 8, 500, fault="fail", seconds=15),
    Row("nth-fails-striped", "direct", "region", 8, 800, fault="fail", where=STRIPED, seconds=15),
    Row("nth-fails-devdax", "map", "region", 8, 500, fault="fail", where=DEVDAX, seconds=15),
    Row("stolen", "direct", "region", 8, 1000, fault="stolen", seconds=30),
    Row("hangs", "direct", "region", 8, 600, fault="hang", seconds=15),
    Row("slow", "direct", "region", 8, 600, fault="slow", seconds=15),
    Row("agent-killed", "direct", "region", 8, 1000, fault="kill_agent", delay=5000, seconds=20),
    Row("agent-restarted", "direct", "region", 8, 1000, fault="restart", delay=5000, seconds=20),
    Row("worker-killed", "direct", "region", 8, 1000, fault="kill_worker", delay=5000, seconds=15),
    Row("orphan-fails", "direct", "region", 8, 1000, fault="orphan", delay=20000, seconds=40),
    Row("orphan-in-turn", "orphan", "agent", 1, 5),
    Row("bus-restarted", "direct", "bus", 8, 300, fault="bus", delay=5000, seconds=20),
    Row("port-unplugged", "direct", "region", 8, 600, fault="port", seconds=15),
    Row("state-full", "direct", "region", 8, 600, fault="state_full", seconds=15),
    Row("state-read-only", "direct", "region", 8, 600, fault="state_read_only", seconds=15),
    Row("hot-add", "direct", "region", 8, 600, fault="hot_add", seconds=12),
]

# Killed at each step of a round, one after the other. An agent that has a loss to tell makes some five hundred: of these
# it is every third.
STEPS = [
    Row("agent-steps", "steps", "agent", 1, 0),
    Row("agent-steps-fails", "steps", "agent", 1, 0, fault="fail", every=3),
    Row("worker-steps", "steps", "worker", 1, 0),
    Row("worker-steps-fails", "steps", "worker", 1, 0, fault="fail"),
]

XFS = [
    Row("xfs-msync", "map", "msync", 8, 300, "xfs", preload=True),
    Row("xfs-fresh", "fresh", "msync", 4, 150, "xfs", 12, preload=True),
    Row("xfs-metadata", "meta", "fsync", 4, 150, "xfs", 12, preload=True),
]

SHORT_FORMS = [Row("metadata-short", "meta", "fsync", 4, 100, "ext4", 8, preload=True)]

# Each must be caught.
CONTROLS = [
    Row("no-flush", "direct", "region", 4, 60, agent="no-flush", control=True),
    Row("answer-at-arrival", "direct", "region", 8, 200, delay=5000, agent="answer-at-arrival", control=True),
    Row("late-join", "direct", "region", 8, 300, delay=5000, agent="late-join", control=True),
    Row("retry-after-error", "direct", "region", 8, 1500, fault="fail", delay=3000, agent="retry-after-error", control=True, seconds=15),
    Row("stolen-unnoticed", "direct", "region", 8, 600, fault="stolen", delay=3000, agent="stolen-unnoticed", control=True,
        seconds=20),
    Row("region-for-fresh", "fresh", "region", 4, 100, "ext4", 10, control=True),
    Row("datasync-for-sync", "meta", "file", 1, 60, "ext4", 20, agent="datasync-for-sync", control=True),
    Row("share-off", "direct", "region", 4, 60, control=True, where=PRIVATE),
    Row("late-success", "direct", "region", 8, 300, fault="hang", delay=3000, agent="late-success", control=True, seconds=15),
    Row("second-flush", "orphan", "agent", 1, 3, agent="second-flush", control=True),
]

SHORT = ["raw-socket", "nth-fails", "fixed-msync", "metadata-short", "late-join", "region-for-fresh"]

ALL = SHORT_FORMS + WORKLOADS + FAULTS + STEPS + XFS + CONTROLS


def find(name):
    return next(row for row in ALL if row.name == name)
