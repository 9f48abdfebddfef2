#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: preload-kept.py FILE MOUNT_POINT

Maps FILE, closes it, and syncs the mapping; a POSIX lock on it stays; when nothing is mapped MOUNT_POINT is unmounted.
Prints what came of each."""

import ctypes
import fcntl
import mmap
import os
import subprocess
import sys

LOCKED = "import fcntl, sys\ntry: fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept OSError: sys.exit(1)"
SIZE = 65536

path, mount_point = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


def say(what, r):
    print(what, "done" if r == 0 else os.strerror(ctypes.get_errno()))


def is_locked():
    return subprocess.run([sys.executable, "-c", LOCKED, path], env={}, check=False).returncode == 1


# The lock is of another file, so that none of ours has to be open of it.
lock_path, path = path + ".lock", path
open(lock_path, "wb").write(bytes(SIZE))
file = os.open(path, os.O_RDWR)
lock = open(lock_path, "r+b")
fcntl.lockf(lock, fcntl.LOCK_EX)
maps = [libc.mmap(None, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        for fd in (file, lock.fileno(), file)]
os.close(file)
ctypes.memset(maps[0], 1, SIZE)
for m in maps:
    say("msync", libc.msync(ctypes.c_void_p(m), SIZE, mmap.MS_SYNC if hasattr(mmap, "MS_SYNC") else 4))
path = lock_path
print("locked" if is_locked() else "not locked")
lock.close()
for m in maps:
    say("munmap", libc.munmap(ctypes.c_void_p(m), SIZE))
say("umount", subprocess.run(["umount", mount_point], env={"PATH": os.environ["PATH"]}, check=False).returncode)
