#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""An error of a file's writeback waits in each of its descriptors, /mnt/file being on a disk that has no room for it.

errors.py facts: fsync takes it from one descriptor and leaves it in the others; so does what the worker uses instead,
which sends no flush. errors.py agent: in a round it is found in a descriptor that did not make the call.
"""

import os
import subprocess
import sys
from errno import EIO, ENOSPC

from door import Round, count, expect, fetch, fsync


def overflow(*fds):
    """More than there is room for; `taker` takes the error first."""
    writer = os.open("/mnt/file", os.O_WRONLY | os.O_CREAT, 0o644)
    taker = os.open("/mnt/file", os.O_RDONLY)
    for i in range(48):
        os.pwrite(writer, os.urandom(1 << 20), i << 20)
    error = fsync(taker)
    expect(f"a plain fsync of another descriptor takes its error, {error}", error in (EIO, ENOSPC), True)
    os.close(taker)
    os.close(writer)
    return error  # ext4 of Linux 6.1 makes any error of the disk EIO


def opened():
    return os.open("/mnt/file", os.O_RDONLY)


def facts():
    a, b, c = opened(), opened(), opened()
    error = overflow()
    late = opened()
    before = count()
    expect("sync_file_range takes the error of its descriptor", fetch(a), error)
    expect("once", fetch(a), 0)
    expect("that of another is left", fetch(b), error)
    expect("who opened the file after that has none", fetch(late), 0)
    expect("host flushes for that", count() - before, 0)
    expect("fsync takes it as well", fsync(c), error)
    expect("once", fsync(c), 0)
    expect("and has none where the other has taken it", fsync(a), 0)


def together(*fds):
    r = Round()
    for fd in fds:
        r.ask(fd, "file")
    return r.end()[0]


def acknowledge():
    loss = subprocess.run(["busctl", "get-property", "io.pmem.Agent1", "/io/pmem/Agent1/region/region0",
                           "io.pmem.Agent1.Region", "Loss"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()[1]
    subprocess.run(["pmemctl", "acknowledge", "region0", f"--loss={loss}"], check=True)


def agent():
    a, b, taken = opened(), opened(), opened()
    error = overflow()
    expect("a plain fsync", fsync(taken), error)
    late = opened()
    expect("descriptors without an error share a call", together(late, taken), ["Durable"] * 2)
    for fd in a, b:
        answers = together(late, fd, taken)
        if error == EIO:
            expect("one with an error, led by one without: everyone's loss", answers, ["Lost"] * 3)
            acknowledge()
        else:
            expect("one with an error, led by one without: its own", answers, ["Durable", "TargetFailed", "Durable"])
        expect("the error was fetched", together(late, fd), ["Durable"] * 2)


{"facts": facts, "agent": agent}[sys.argv[1]]()
