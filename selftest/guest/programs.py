#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real programs, unchanged, under `pmemctl run` on DAX: fio, stress-ng, SQLite and PostgreSQL.

usage: programs.py [--long] [--only PROGRAM]... [ext4|xfs]...

Each has a check of its own that its data is right. It runs bare, which must not be taken for routed; preloaded; and
while the agent is restarted once a second, which it must not notice, and killed once a second: then it may be told that
a flush has failed, and its data must be right all the same. --long: many more of these, and each on either filesystem.
"""

import argparse
import contextlib
import glob
import json
import os
import threading

import postgres
from testlib import (acknowledge, agent_pid, check, comment, finish, forgive_restarts, kill, read_page, region_property,
                     restart, run, vm, wait_for_next, wait_until)

RUN = ["pmemctl", "--quiet", "run", "--"]
HERE = os.path.dirname(os.path.realpath(__file__))


# ---- who has been asked ----

def requests():
    """How many flushes of files the agent that runs now has been asked for."""
    regions = json.loads(run("pmemctl", "stats", "--json", "region0").stdout)["regions"]
    counts = regions[0]["requests"]
    counts = dict(line.split() for line in counts) if isinstance(counts, list) else counts
    return sum(int(counts[scope]) for scope in ("file", "file-data", "filesystem"))


def host_flushes():
    return int(vm("fsync", "count", "r0"))


class Routed:
    """What a program has asked the agent for, and the host has been asked for meanwhile."""

    def __init__(self, least):
        self.least = least

    def __enter__(self):
        self.requests, self.flushes = -requests(), -host_flushes()
        return self

    def __exit__(self, *_):
        self.requests += requests()
        self.flushes += host_flushes()

    def __bool__(self):
        return self.requests >= self.least and self.flushes > 0

    def __str__(self):
        return f"{self.requests} requests, {self.flushes} flushes of the host"


# ---- an agent that comes and goes ----

def kill_agent():
    instance = read_page().instance
    kill(agent_pid())
    wait_for_next(instance)


@contextlib.contextmanager
def disturbed(how):
    """Once a second, until the end; gives a function that says how often so far."""
    ended, count = threading.Event(), 0

    def disturb():
        nonlocal count
        while not ended.wait(1):
            how()
            count += 1

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield lambda: count
    finally:
        ended.set()
        thread.join()
        forgive_restarts()


# ---- programs: each says what is wrong, '' if nothing is; `preload` is what it is to run under ----

def fio(preload, directory, bears_errors=False):
    command = [*preload, "fio", "--name=verify", f"--directory={directory}", "--ioengine=mmap", "--rw=randwrite", "--bs=4k",
               "--size=1M", "--verify=crc32c", "--verify_fatal=1", "--output-format=json", "--randseed=7"]
    write = run(*command, "--fsync=4", "--do_verify=0", *(["--continue_on_error=io"] if bears_errors else []))
    verify = run(*command, "--verify_only")
    try:
        read = json.loads(verify.stdout[verify.stdout.index("{"):])["jobs"][0]
        if read["read"]["total_ios"] != 256 or read["error"] != 0:
            return f"verified {read['read']['total_ios']} of 256, error {read['error']}"
    except ValueError:
        return verify.stdout
    return "" if bears_errors or write.returncode == 0 else write.stdout


def stress(preload, directory, bears_errors=False):
    done = run(*preload, "stress-ng", "--temp-path", directory, "--verify", "--timeout", "100", "--no-rand-seed",
               "--msync", "1", "--msync-ops", "100", "--msync-bytes", "1m",
               "--mmap", "1", "--mmap-ops", "4", "--mmap-bytes", "64k", "--mmap-file")
    wrong = "mismatch" in done.stdout or "not match" in done.stdout or "incorrect" in done.stdout
    return done.stdout if wrong or (done.returncode != 0 and not bears_errors) else ""


def sqlite(preload, directory, bears_errors=False):
    for mode in ("delete", "wal"):
        for path in glob.glob(f"{directory}/{mode}.db*"):
            os.unlink(path)
        done = run(*preload, "python3", f"{HERE}/preload-sqlite.py", f"{directory}/{mode}.db", mode, "40",
                   *(["retry"] if bears_errors else []))
        right = done.returncode == 0 and "integrity ok, 40 rows" in done.stdout
        if not right or not (bears_errors or "\n0 failed" in done.stdout):
            return done.stdout
    return ""


# Name, function, least number of requests of one run, where it runs if not on both.
PROGRAMS = [
    ("fio", fio, 60, "ext4"),
    ("stress-ng", stress, 100, "xfs"),
    ("SQLite", sqlite, 120, "ext4"),
]
LEAST_OF_SERVER = postgres.TRANSACTIONS  # each is committed, some together


def check_program(name, program, least, directory, times):
    with Routed(least) as bare:
        why = program([], directory)
    check(f"{name}, bare: right", why == "", why)
    check(f"not taken for routed ({bare})", not bare and bare.flushes > 0)
    with Routed(least) as ours:
        why = program(RUN, directory)
    check(f"{name}, preloaded: right", why == "", why)
    check(f"routed ({ours})", ours)
    for verb, how, bears in (("restarted", restart, False), ("killed", kill_agent, True)):
        runs = 0
        with disturbed(how) as count:
            while (runs == 0 or count() < times) and why == "":
                why = program(RUN, directory, bears)
                runs += 1
        check(f"{name}, {count()} times the agent is {verb} in {runs} runs: right", why == "" and count() >= times, why)


# ---- a server ----

def check_routes(server):
    with Routed(LEAST_OF_SERVER) as bare:
        server.work()
    why = server.problem()
    check(f"{server.name}, bare: right", why == "", why)
    check(f"not taken for routed ({bare})", not bare and bare.flushes > 0)
    server.stop()
    server.start(RUN)
    with Routed(LEAST_OF_SERVER) as ours:
        done = server.work()
    why = server.problem()
    check(f"{server.name}, preloaded: right", done and why == "", why)
    check(f"routed ({ours})", ours)


def check_kills(server, times):
    with disturbed(restart) as count:
        done = True
        while count() < times and done:
            done = server.work()
    why = server.problem()
    check(f"{server.name}, {count()} times the agent is restarted: right, with {server.confirmed} transactions",
          done and why == "", why or server.log())
    with disturbed(kill_agent) as count:
        while count() < times:
            server.work()
    check(f"{server.name}, {count()} times the agent is killed: it serves again", wait_until(60, server.is_serving),
          server.log())
    why = server.problem()
    check(f"right, with {server.confirmed} transactions", why == "", why)
    before, work = requests(), server.begin_work(10000)
    wait_until(60, lambda: requests() > before + 100)
    server.kill()
    server.end_work(work)
    server.start(RUN)
    why = server.problem()
    check(f"{server.name}, killed itself: it recovers, with {server.confirmed} transactions", why == "", why)


def check_failure(server):
    """It is told, again and again, until the loss is acknowledged; then it has all that it had confirmed."""
    vm("fsync", "fail", "1", "r0")
    check(f"{server.name}, a flush of the host fails: its work fails", not server.work(), server.log())
    check("the region is lost", region_property("State") == "lost")
    check("it is told EIO, and again when it tries to recover", wait_until(30, lambda: server.count_errors() > 1), server.log())
    check("it does not serve", not server.is_serving(), server.log())
    server.kill()
    server.start(RUN, must_succeed=False)
    check("started again, it is told EIO", wait_until(30, lambda: server.count_errors() > 0), server.log())
    check("nor does it serve then", not server.is_serving(), server.log())
    server.kill()
    check("the loss is acknowledged", acknowledge().returncode == 0)
    check("then it starts", server.start(RUN, must_succeed=False), server.log())
    done = server.work()
    why = server.problem()
    check(f"and is right, with {server.confirmed} transactions", done and why == "", why)


def check_server(server, times):
    check_routes(server)
    check_kills(server, times)
    check_failure(server)
    why = server.end()
    check(f"{server.name}, stopped: its indexes and checksums are right", why == "", why)


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n")[0])
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", action="append")
    parser.add_argument("filesystems", nargs="*", default=["ext4", "xfs"])
    args = parser.parse_args()
    times = 20 if args.long else 2
    run("systemctl", "is-system-running", "--wait")
    device = vm("dev", "r0")
    for filesystem in args.filesystems:
        comment(filesystem)
        made = run("bash", "-c", f". {HERE}/lib.sh; mkdax {device} /mnt {filesystem}")
        if not check(f"{filesystem} with DAX is mounted", made.returncode == 0, made.stdout):
            finish()
        for name, program, least, short in PROGRAMS:
            if (args.long or filesystem == short) and (not args.only or name in args.only):
                check_program(name, program, least, "/mnt", times)
        if (args.long or filesystem == "xfs") and (not args.only or postgres.Server.name in args.only):
            check_server(postgres.Server("/mnt"), times)
        check("it can be unmounted", run("umount", "/mnt").returncode == 0)
    finish()


main()
