#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Passes a descriptor of PATH to Manager.Flush, says "sent", and prints what comes back.

usage: pass-descriptor.py PATH
"""

import os
import sys

import dbus

bus = dbus.SystemBus()
manager = bus.get_object("io.pmem.Agent1", "/io/pmem/Agent1", introspect=False)
flush = manager.get_dbus_method("Flush", "io.pmem.Agent1.Manager")
fd = os.open(sys.argv[1], os.O_RDONLY)
print("sent", flush=True)
try:
    print(flush(dbus.types.UnixFd(fd), dbus.Dictionary({}, signature="sv"), timeout=30))
except dbus.DBusException as error:
    print(error.get_dbus_name(), error.get_dbus_message(), flush=True)
os._exit(0)
