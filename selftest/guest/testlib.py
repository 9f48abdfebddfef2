# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the Python tests of this directory share: TAP, the test machine's `vm`, and a load on the agent."""

import os
import subprocess
import sys
import threading
import time

import judge

LOG = "/tmp/answers"
_checks = _failed = 0


def check(text, holds, why=""):
    global _checks, _failed
    _checks += 1
    _failed += not holds
    print(f"{'ok' if holds else 'not ok'} {_checks} - {text}", flush=True)
    if not holds and why:
        print("\n".join("# " + line for line in str(why).splitlines()), flush=True)
    return holds


def finish():
    print(f"1..{_checks}")
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
        threading.Event().wait(0.02)
    return True


def region_property(name):
    return run("busctl", "get-property", "io.pmem.Agent1", "/io/pmem/Agent1/region/region0", "io.pmem.Agent1.Region",
               name).stdout.split()[-1]


class Load:
    """Clients at the socket who flush `path` again and again, and write down what they are told."""

    def __init__(self, clients, scope, path):
        self.clients = clients
        if os.path.exists(LOG):
            os.unlink(LOG)
        self.process = subprocess.Popen(["/root/load-sock", str(clients), scope, LOG, path])

    def answers(self):
        return judge.read_answers(LOG) if os.path.exists(LOG) else []

    def wait_for(self, answer, turns=2):
        """Until each of the clients, on average, has been told that so many times from now on."""
        def count():
            return sum(row[2] == answer for row in self.answers())

        wanted = count() + turns * self.clients
        return wait_until(30, lambda: count() >= wanted)

    def end(self):
        self.process.terminate()
        self.process.wait()
        return self.answers()
