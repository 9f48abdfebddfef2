# SPDX-License-Identifier: LGPL-2.1-or-later
"""A PostgreSQL server of its own in a directory, with pgbench as its work, for programs.py."""

import contextlib
import os
import re
import shutil
import signal
import subprocess

from testlib import run, wait_until

AS_USER = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "env", "-C", "/", "PGHOST=/tmp",
           "PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin"]
LOG, CLIENTS, TRANSACTIONS = "/tmp/postgres.log", 8, 25

# Checksums and all that makes commits safe are on; the rest makes it small.
SETTINGS = """
shared_buffers=16MB
max_connections=20
min_wal_size=2MB
max_wal_size=16MB
autovacuum=off
jit=off
log_min_messages=warning
listen_addresses=''
unix_socket_directories='/tmp'
wal_sync_method={}
"""

# What each of pgbench's transactions adds to three tables, it writes down in a fourth.
SUMS = """select count(*), (select sum(abalance) from pgbench_accounts) = sum(delta),
(select sum(tbalance) from pgbench_tellers) = sum(delta), (select sum(bbalance) from pgbench_branches) = sum(delta)
from pgbench_history"""


class Server:
    name = "PostgreSQL"

    def __init__(self, directory, wal_sync_method="fdatasync"):
        self.data = os.path.join(directory, "data")
        self.confirmed = 0  # transactions that it has said are committed
        self.log_begins = 0
        os.chmod(directory, 0o777)
        with open(LOG, "w", encoding="utf-8"):
            os.chmod(LOG, 0o666)
        self.call("initdb", "-k", "--no-locale", "-E", "SQL_ASCII", "--wal-segsize=1", "-A", "trust", "--no-sync", "-D", self.data)
        with open(os.path.join(self.data, "postgresql.conf"), "a", encoding="utf-8") as f:
            f.write(SETTINGS.format(wal_sync_method))
        self.start([])
        self.call("pgbench", "-i", "-I", "dtGp", "-q", "postgres")

    def call(self, *command, must_succeed=True):
        done = run(*AS_USER, *command)
        if must_succeed and done.returncode != 0:
            raise OSError(f"{command[0]}: {done.stdout}\n{self.log()}")
        return done

    # ---- the server ----

    def pids(self):
        """Of the server and what it has started; the kernel forgets none of them before it is dead."""
        try:
            with open(os.path.join(self.data, "postmaster.pid"), encoding="ascii") as f:
                pid = f.readline().strip()
            with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
                return [int(p) for p in [pid, *f.read().split()]]
        except FileNotFoundError:
            return []

    def start(self, preload, must_succeed=True):
        self.log_begins = os.path.getsize(LOG)
        return self.call(*preload, "pg_ctl", "-D", self.data, "-w", "-t", "120", "-s", "-l", LOG, "start",
                         must_succeed=must_succeed).returncode == 0

    def kill(self):
        victims = self.pids()
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not wait_until(30, lambda: not any(os.path.exists(f"/proc/{pid}") for pid in victims)):
            raise TimeoutError("the server does not die")

    def stop(self):
        self.call("pg_ctl", "-D", self.data, "-w", "-s", "-m", "fast", "stop")

    def log(self):
        """What it has said since it was started."""
        with open(LOG, encoding="utf-8", errors="replace") as f:
            f.seek(self.log_begins)
            return f.read()

    def count_errors(self):
        """Those after which it may not go on."""
        return len(re.findall("(?:PANIC|FATAL):.*Input/output error", self.log()))

    # ---- its work ----

    def begin_work(self, transactions=TRANSACTIONS):
        return subprocess.Popen([*AS_USER, "pgbench", "-n", "-c", str(CLIENTS), "-j", "2", "-t", str(transactions),
                                 "postgres"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def end_work(self, process):
        """Whether all has been committed."""
        output = process.communicate()[0]
        done = re.search(r"actually processed: ([0-9]+)", output)
        self.confirmed += int(done[1]) if done else 0
        return process.returncode == 0

    def work(self):
        return self.end_work(self.begin_work())

    def is_serving(self):
        return self.call("psql", "-Atqc", "create table if not exists probe (n int)", "postgres",
                         must_succeed=False).returncode == 0

    # ---- whether it is right ----

    def problem(self):
        """'': it has all that it has confirmed, and nothing twice or by half."""
        sums = self.call("psql", "-Atqc", SUMS, "postgres", must_succeed=False).stdout.strip()
        count, *equal = sums.split("|")
        if not count.isdigit() or int(count) < self.confirmed or equal not in (["t"] * 3, [""] * 3):
            return f"{sums}, where {self.confirmed} are confirmed\n{self.log()}"
        return ""

    def end(self):
        """The same of its tables and indexes, and of its files by themselves; it is gone then."""
        check = self.call("pg_amcheck", "--install-missing", "--heapallindexed", "-d", "postgres", must_succeed=False)
        self.stop()
        sums = self.call("pg_checksums", "--check", "-D", self.data, must_succeed=False)
        shutil.rmtree(self.data)
        return check.stdout * (check.returncode != 0) + sums.stdout * (sums.returncode != 0)
