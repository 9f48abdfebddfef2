#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""How many host flushes the requests of one round take: on /mnt of r0.

usage: plans.py one-file|mixed|filesystem|files
"""

import os
import sys

from door import Round, expect


def opened(name, flags=os.O_RDWR):
    return os.open("/mnt/" + name, flags)


def one_file():
    r = Round()
    for _ in range(16):
        r.ask(opened("file0"), "file", datasync=True)
    answers, n = r.end()
    expect("answers", set(answers), {"Durable"})
    expect("host flushes", n, 1)


def mixed():
    r = Round()
    r.ask(opened("file0"), "file", datasync=True)
    r.ask(opened("file0"), "file")
    r.ask(opened("file0"), "file", datasync=True)
    answers, n = r.end()
    expect("answers", set(answers), {"Durable"})
    expect("host flushes", n, 1)


def files(count, most):
    r = Round()
    for i in range(count):
        fd = opened(f"file{i}")
        os.pwrite(fd, b"news", 0)
        r.ask(fd, "file")
    answers, n = r.end()
    expect("answers", answers, ["Durable"] * count)
    expect(f"{n} host flushes, at most {most}", n <= most, True)


def filesystem():
    r = Round()
    for _ in range(8):
        r.ask(opened("", os.O_RDONLY), "region")
    r.ask(opened("", os.O_RDONLY), "filesystem")
    r.ask(opened("file0"), "file")
    answers, n = r.end()
    expect("answers", set(answers), {"Durable"})
    expect("host flushes", n, 1)


{"one-file": one_file, "mixed": mixed, "filesystem": filesystem,
 "files": lambda: files(8, 3)}[sys.argv[1]]()
