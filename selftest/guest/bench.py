#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""One table: callers of plain fdatasync, of the agent, and combined among themselves, interleaved.

usage: bench.py PROGRAM [--seconds S] [--turns N] [--callers N,...]

In the guest of selftest/vm/run: on the block device of region r0 and on a DAX file on it, with the host's flushes as
they are, and with 2 ms added to each, one after the other. PROGRAM is bench-flush.
"""

import argparse
import glob
import json
import os
import statistics
import subprocess

MODES = ["plain", "socket", "ideal", "dbus"]


class Place:
    """Where it is measured: how many flushes the host has made, and what the agent's processes have used."""

    def __init__(self, count, pids, environment=None):
        self.count, self.pids, self.environment = count, pids, environment or {}

    def cpu(self):
        """Of the agent and its workers, in microseconds."""
        total = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/schedstat", encoding="ascii") as f:
                total += int(f.read().split()[0]) / 1000
        return total


def run(place, program, mode, scope, callers, seconds, path):
    flushes, cpu = place.count(), place.cpu()
    out = subprocess.run([program, mode, scope, str(callers), str(seconds), path], check=True, stdout=subprocess.PIPE,
                         env={**os.environ, **place.environment}).stdout
    row = json.loads(out)
    assert row["failures"] == 0, row
    row["flushes"] = place.count() - flushes
    row["cpu"] = place.cpu() - cpu
    return row


def measure(place, program, scope, path, callers, seconds, turns, modes=MODES):
    """Rows by mode, one a turn; the modes take turns, so that what disturbs one disturbs all."""
    rows = {mode: [] for mode in modes}
    for _ in range(turns):
        for mode in modes:
            rows[mode].append(run(place, program, mode, scope, callers, seconds, path))
    return rows


def median(rows, value):
    return statistics.median(value(row) for row in rows)


def summary(rows):
    """What the table says of one number of callers; ratios are of medians of the same turns."""
    result = {}
    for mode, of_mode in rows.items():
        result[mode] = {
            "rate": median(of_mode, lambda r: r["requests"] / r["usec"] * 1e6),
            "p50": median(of_mode, lambda r: r["p50"]),
            "p99": median(of_mode, lambda r: r["p99"]),
            "flushes per request": sum(r["flushes"] for r in of_mode) / sum(r["requests"] for r in of_mode),
            "agent CPU per flush": sum(r["cpu"] for r in of_mode) / max(1, sum(r["flushes"] for r in of_mode)),
        }
    return result


HEADER = """\
                             |    requests a second        | socket is      | host flushes a request      | p50 us        | p99 us        | agent us
target                     n |  plain socket  ideal   dbus | x plain x ideal|  plain socket  ideal   dbus |  plain socket |  plain socket | CPU a flush"""


def line(label, n, s):
    plain, socket, ideal, _ = columns = [s[m] for m in MODES]
    rates = " ".join(f"{c['rate']:6.0f}" for c in columns)
    flushes = " ".join(f"{c['flushes per request']:6.3f}" for c in columns)
    return (f"{label:<24} {n:>3} | {rates} | {socket['rate'] / plain['rate']:7.2f} {socket['rate'] / ideal['rate']:6.2f} "
            f"| {flushes} | {plain['p50']:6.0f} {socket['p50']:6.0f} | {plain['p99']:6.0f} {socket['p99']:6.0f} "
            f"| {socket['agent CPU per flush']:8.0f}")


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--callers", default="1,4,16,64")
    return parser.parse_args()


def vm(*args):
    return subprocess.run(["vm", *args], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def pids():
    main = subprocess.run(["systemctl", "show", "-P", "MainPID", "pmem-agent"], check=True, stdout=subprocess.PIPE,
                          text=True).stdout.strip()
    children = []
    for path in glob.glob(f"/proc/{main}/task/*/children"):
        with open(path, encoding="ascii") as f:
            children += f.read().split()
    return [main, *children]


def main():
    args = arguments()
    place = Place(lambda: int(vm("fsync", "count", "r0")), pids)
    device = vm("dev", "r0")
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", device], check=True)
    subprocess.run(["mount", "-o", "dax=always", device, "/mnt"], check=True)
    with open("/mnt/file", "wb") as f:
        f.write(bytes(1 << 20))
        os.fsync(f.fileno())
    print(HEADER)
    for delay in (0, 2000):
        vm("fsync", "delay", str(delay), "r0")
        for scope, path in (("region", device), ("file", "/mnt/file")):
            for n in map(int, args.callers.split(",")):
                rows = measure(place, args.program, scope, path, n, args.seconds, args.turns)
                label = f"{scope}, host {'as it is' if not delay else '+2 ms'}"
                print(line(label, n, summary(rows)), flush=True)


if __name__ == "__main__":
    main()
