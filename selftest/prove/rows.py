# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rows of the campaign: what is stored, who flushes it, and what goes wrong meanwhile."""

import collections

Row = collections.namedtuple("Row", "name store flush lanes promises filesystem images preload fault delay seconds agent"
                                    " control region", defaults=("", 0, False, "", 0, 0, "", False, "r0"))

# name, store, flush, lanes, promises; see load-cut.c. With `images` that many cut points are mounted and looked at,
# else the pages are fixed and the host judges every moment.
WORKLOADS = [
    Row("raw-socket", "direct", "region", 16, 1200),
    Row("raw-bus", "direct", "bus", 8, 500),
    Row("fixed-file", "map", "file", 8, 500, "ext4"),
    Row("fixed-region", "map", "region", 8, 500, "ext4"),
    Row("fixed-msync", "map", "msync", 8, 500, "ext4", preload=True),
    Row("fixed-fdatasync", "map", "fdatasync", 8, 300, "ext4", preload=True),
    Row("fresh-file", "fresh", "file", 4, 300, "ext4", 30),
    Row("fresh-msync", "fresh", "msync", 4, 300, "ext4", 30, preload=True),
    Row("fresh-one", "fresh", "msync", 1, 100, "ext4", 20, preload=True),
    Row("metadata-file", "meta", "file", 4, 300, "ext4", 30),
    Row("metadata-fsync", "meta", "fsync", 4, 300, "ext4", 30, preload=True),
    Row("sqlite", "program", "sqlite", 1, 60, "ext4", 20, preload=True),
    Row("shell", "program", "shell", 1, 30, "ext4", 15),
]

FAULTS = [
    Row("nth-fails", "direct", "region", 8, 1500, fault="fail"),
    Row("nth-fails-bus", "direct", "bus", 8, 500, fault="fail"),
    Row("stolen", "direct", "region", 8, 1000, fault="stolen"),
    Row("hangs", "direct", "region", 8, 600, fault="hang", seconds=20),
    Row("slow", "direct", "region", 8, 600, fault="slow"),
    Row("agent-killed", "direct", "region", 8, 1000, fault="kill_agent", delay=5000, seconds=25),
    Row("agent-restarted", "direct", "region", 8, 1000, fault="restart", delay=5000, seconds=25),
    Row("worker-killed", "direct", "region", 8, 1000, fault="kill_worker", delay=5000, seconds=25),
    Row("orphan-fails", "direct", "region", 8, 1000, fault="orphan", delay=20000, seconds=25),
    Row("bus-restarted", "direct", "bus", 8, 300, fault="bus", delay=5000, seconds=20),
    Row("port-unplugged", "direct", "region", 8, 600, fault="port", seconds=20),
    Row("state-full", "direct", "region", 8, 600, fault="state_full", seconds=20),
    Row("state-read-only", "direct", "region", 8, 600, fault="state_read_only", seconds=20),
    Row("hot-add", "direct", "region", 8, 600, fault="hot_add", seconds=20),
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
    Row("share-off", "direct", "region", 4, 60, control=True, region="r3"),
    Row("late-success", "direct", "region", 8, 300, fault="hang", delay=3000, agent="late-success", control=True, seconds=15),
    Row("second-flush", "orphan", "fsync", 1, 3, control=True),
]

SHORT = ["raw-socket", "nth-fails", "fixed-msync", "metadata-short", "late-join", "region-for-fresh"]

ALL = SHORT_FORMS + WORKLOADS + FAULTS + XFS + CONTROLS


def find(name):
    return next(row for row in ALL if row.name == name)
