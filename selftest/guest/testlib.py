# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the Python tests of this directory share: TAP, the test machine's `vm`, and a load on the agent."""

import collections
import glob
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time

import judge

ORIGIN_ROUND, ORIGIN_WITNESS = 1, 2  # of agent/flush.h
_checks = _failed = 0

PAGE, PAGE_AT = struct.Struct("=I20xQQ24x16sQQ36xI"), 288    # see lib/wire.h
Page = collections.namedtuple("Page", "worker started done instance loss acknowledged loss_origin")


def check(text, holds, why=""):
    global _checks, _failed
    _checks += 1
    _failed += not holds
    print(f"{'ok' if holds else 'not ok'} {_checks} - {text}", flush=True)
    if not holds and why:
        print("\n".join("# " + line for line in str(why).splitlines()), flush=True)
    return holds


def comment(text):
    print(f"# {text}", flush=True)


def finish():
    print(f"1..{_checks}", flush=True)
    sys.exit(_failed > 0)


def run(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def vm(*words):
    return subprocess.run(["vm", *words], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def wait_until(seconds, condition):
    """For what nothing announces."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        threading.Event().wait(0.01)
    return True


def region_property(name):
    return run("busctl", "get-property", "io.pmem.Agent1", "/io/pmem/Agent1/region/region0", "io.pmem.Agent1.Region",
               name).stdout.split()[-1].strip('"')


# ---- the agent ----

def read_pages():
    """Of all regions, see lib/wire.h."""
    for path in glob.glob("/run/pmem-agent/*.page"):
        with open(path, "rb") as f:
            yield Page._make(PAGE.unpack_from(f.read(), PAGE_AT))


def read_page():
    """The page of the only region."""
    return next(read_pages())


def agent_pid():
    return int(run("systemctl", "show", "-P", "MainPID", "pmem-agent").stdout)


def forgive_restarts():
    """systemd starts nothing that has been started five times in ten seconds."""
    run("systemctl", "reset-failed", "pmem-agent")


def kill(pid):
    """SIGKILL, and the page right after it; returns when it is dead, which takes a worker until its flush is over."""
    forgive_restarts()
    fd = os.pidfd_open(pid)
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    page = read_page()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    dead = poll.poll(10000)
    os.close(fd)
    if not dead:
        raise TimeoutError(f"{pid} does not die")
    return page


def wait_for_next(instance):
    """Until the agent is another than that one."""
    if not wait_until(30, lambda: read_page().instance != instance):
        raise TimeoutError("no agent comes after the one that ended")


def restart():
    before = read_page().instance
    forgive_restarts()
    if run("systemctl", "restart", "pmem-agent").returncode != 0:
        raise OSError("systemctl restart")
    wait_for_next(before)


def acknowledge():
    return run("pmemctl", "acknowledge", "region0", f"--loss={read_page().loss}")


# ---- a load ----

class Load:
    """Clients at the socket who flush the files again and again, and write down what they are told."""

    def __init__(self, clients, scope, *paths, uid=None, nice=0):
        self.clients, log = clients, f"/tmp/answers-{uid or 0}"
        if os.path.exists(log):
            os.unlink(log)
        user = ["setpriv", f"--reuid={uid}", "--clear-groups"] if uid else []
        # The log is the client's standard output, which another user need not be able to open.
        with open(log, "wb") as output:
            self.process = subprocess.Popen(["nice", f"-n{nice}", *user, "/root/load-sock", str(clients), scope, *paths],
                                            stdout=output)
        self.log = open(log, "rb")
        self.rows, self.counts = [], collections.Counter()

    def answers(self):
        new = judge.read_answers(self.log)
        self.rows += new
        self.counts.update(row[2] for row in new)
        return self.rows

    def count(self, answer):
        self.answers()
        return self.counts[answer]

    def wait_for(self, answer, turns=2):
        """Until each of the clients, on average, has been told that so many times from now on."""
        wanted = self.count(answer) + turns * self.clients
        return wait_until(30, lambda: self.count(answer) >= wanted)

    def end(self):
        self.process.terminate()
        if self.process.wait(30) != 0:
            raise OSError(f"load-sock ended with {self.process.returncode}")
        self.log.seek(0)
        self.rows, self.counts = [], collections.Counter()
        return self.answers()
