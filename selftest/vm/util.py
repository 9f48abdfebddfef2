# SPDX-License-Identifier: LGPL-2.1-or-later
"""Small things every part of the virtual machine tool needs."""

import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))


class VmError(Exception):
    """What went wrong, in words for the person who called `run`."""


_tasks = set()


def background(coroutine):
    """Start a task nobody waits for. What it dies of reaches the loop's exception handler."""
    def ended(task):
        _tasks.discard(task)
        if not task.cancelled() and task.exception():
            asyncio.get_running_loop().call_exception_handler(
                {"message": "task failed", "exception": task.exception()})

    task = asyncio.ensure_future(coroutine)
    _tasks.add(task)
    task.add_done_callback(ended)
    return task


def say(text):
    print(f"vm: {text}", file=sys.stderr, flush=True)


# Program, and the Debian package that has it.
HOST_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "depmod": "kmod",
    "gcc": "gcc",
    "xz": "xz-utils",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
    "make": "make",
}


def find_program(name):
    path = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    return shutil.which(name, path=path)


def check_host():
    """Every missing package at once, so that one apt-get mends it."""
    wanted = dict(HOST_PROGRAMS)
    if os.geteuid() != 0:
        wanted.update({"fakeroot": "fakeroot", "newuidmap": "uidmap"})
    missing = {package for name, package in wanted.items() if not find_program(name)}
    if not os.path.exists("/usr/share/keyrings/debian-archive-keyring.gpg"):
        missing.add("debian-archive-keyring")
    if not os.path.exists("/usr/lib/x86_64-linux-gnu/libc.a"):
        missing.add("libc6-dev")
    if missing:
        raise VmError("missing on this machine: apt-get install " + " ".join(sorted(missing)))


def dying_with_us():
    """A preexec_fn: the child is killed when this process goes, however it goes."""
    parent, libc = os.getpid(), ctypes.CDLL(None)
    PR_SET_PDEATHSIG = 1

    def prepare():
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(127)
    return prepare


def call(argv, log=None, **kwargs):
    """Run a helper program; its output goes to @log, or is shown only when it fails."""
    argv = [find_program(argv[0]) or argv[0]] + list(argv[1:])
    try:
        with open(log, "ab") if log else contextlib.nullcontext(subprocess.PIPE) as out:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out,
                                       stderr=subprocess.STDOUT, start_new_session=True,
                                       preexec_fn=dying_with_us(), **kwargs)
    except OSError as e:
        raise VmError(f"{argv[0]}: {e.strerror}") from e
    try:
        text = (process.communicate()[0] or b"").decode(errors="replace")
    except BaseException:
        _end_group(process)
        raise
    if process.returncode:
        text = tail(log) if log else text
        raise VmError(f"{' '.join(argv)[:200]} failed ({process.returncode}):\n{text}")
    return text


def _end_group(process):
    """We are interrupted: a helper may tidy up, but not for long."""
    os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tail(path, lines=60):
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - 16384))
            text = f.read().decode(errors="replace")
    except OSError:
        return ""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1bc|\r", "", text)
    return "\n".join(text.splitlines()[-lines:])


def digest(*parts):
    """A short name for these inputs; a part is text, bytes, or ("file", path)."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, tuple):
            with open(part[1], "rb") as f:
                part = f.read()
        if isinstance(part, str):
            part = part.encode()
        h.update(len(part).to_bytes(8, "little") + part)
    return h.hexdigest()[:16]


@contextlib.contextmanager
def locked(path):
    """Only one process at a time builds what stands at @path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch(path):
    """A directory that is gone afterwards, also when the build failed half-way; under a lock."""
    temporary = path + ".tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def parse_size(text):
    m = re.fullmatch(r"([0-9]+)([KMG]?)", text)
    if not m or int(m[1]) == 0:
        raise VmError(f"'{text}' is not a size: a number with K, M or G, such as 128M")
    return int(m[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[m[2]]


def compile_c(cache, name, sources, flags):
    """Build one of our C programs; the cache knows it by its source text and flags."""
    paths = [os.path.join(HERE, s) for s in sources]
    headers = [os.path.join(HERE, h) for h in ("guest/frame.h", "record.h")]
    key = digest(" ".join(flags), *[("file", p) for p in paths + headers])
    target = os.path.join(cache, "bin", f"{name}-{key}")
    if os.path.exists(target):
        return target
    with locked(target):
        if not os.path.exists(target):
            call(["gcc", "-O2", "-g", "-Wall", "-Wextra", "-o", target + ".new", *paths, *flags])
            os.rename(target + ".new", target)
    return target
