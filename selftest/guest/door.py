# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests to the agent that wait together, by descriptors of one's own; what several tests share."""

import ctypes
import os
import subprocess
import time

import dbus
import dbus.mainloop.glib
from gi.repository import GLib

dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
libc = ctypes.CDLL(None, use_errno=True)
bus = dbus.SystemBus()
PREFIX = "io.pmem.Agent1.Error."


def vm(*words):
    return subprocess.run(["vm", *words], stdout=subprocess.PIPE, text=True, check=True).stdout


def count():
    return int(vm("fsync", "count", "r0"))


def waiting():
    region = bus.get_object("io.pmem.Agent1", "/io/pmem/Agent1/region/region0", introspect=False)
    return int(region.Get("io.pmem.Agent1.Region", "Waiting", dbus_interface="org.freedesktop.DBus.Properties"))


class Round:
    """Requests that queue up behind a round whose host flush hangs, so that the next one takes them all."""

    def __init__(self):
        self.answers, self.loop = {}, GLib.MainLoop()
        self.manager = dbus.Interface(bus.get_object("io.pmem.Agent1", "/io/pmem/Agent1", introspect=False),
                                      "io.pmem.Agent1.Manager")
        vm("fsync", "hang", "1", "r0")
        self.first = subprocess.Popen(["pmemctl", "flush", "region0"], stdout=subprocess.DEVNULL)
        vm("fsync", "wait-hung", "r0")
        self.n = 0

    def __note(self, number, answer):
        self.answers[number] = answer
        if len(self.answers) == self.n:
            self.loop.quit()

    def ask(self, fd, scope, datasync=False):
        number = self.n
        self.n += 1
        options = {"scope": scope, **({"datasync": True} if datasync else {})}
        self.manager.Flush(dbus.types.UnixFd(fd), options, timeout=2147483, signature="ha{sv}",
                           reply_handler=lambda *reply: self.__note(number, "Durable"),
                           error_handler=lambda e: self.__note(number, (e.get_dbus_name() or "").removeprefix(PREFIX)))

    def end(self):
        """The answers in the order of the requests, and how many host flushes the round took."""
        deadline = time.monotonic() + 20
        while (n := waiting()) != self.n + 1 and time.monotonic() < deadline:
            self.loop.get_context().iteration(False)
        before = count()
        vm("fsync", "release", "r0")
        assert n == self.n + 1, f"{n} wait, answered are {self.answers}"
        self.loop.run()
        assert self.first.wait() == 0, "the first round failed"
        return [self.answers[i] for i in range(self.n)], count() - before


def fetch(fd):
    """What the worker does to fetch an error that waits in a descriptor: the errno, 0 if there was none."""
    if libc.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), 1) == 0:
        return 0
    return ctypes.get_errno()


def fsync(fd):
    try:
        os.fsync(fd)
    except OSError as error:
        return error.errno
    return 0


def expect(text, got, wanted):
    print(f"{text}: {got}" + ("" if got == wanted else f", not {wanted}"), flush=True)
    if got != wanted:
        raise SystemExit(1)
