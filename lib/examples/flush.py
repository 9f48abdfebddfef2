#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes a file durable by way of D-Bus. Exit status 0 only if it is.

usage: flush.py FILE
"""

import os
import sys

import dbus


def flush(fd, scope="file"):
    """What was written before is durable when it returns: the scope, and what that rests on."""
    agent = dbus.SystemBus().get_object("io.pmem.Agent1", "/io/pmem/Agent1")
    manager = dbus.Interface(agent, "io.pmem.Agent1.Manager")
    # It takes as long as the host takes: without a timeout of the bus, as far as there is such a thing.
    _epochs, scope, basis, _usec = manager.Flush(dbus.types.UnixFd(fd), {"scope": scope}, timeout=2147483)
    return scope, basis


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    # The descriptor that was written through: the kernel tells an error once to each.
    fd = os.open(sys.argv[1], os.O_RDWR)
    try:
        print("durable:", *flush(fd))
    except dbus.DBusException as error:
        sys.exit(f"no promise: {error}")


if __name__ == "__main__":
    main()
