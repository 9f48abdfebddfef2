# SPDX-License-Identifier: LGPL-2.1-or-later
"""Does KVM work here? A /dev/kvm that opens may still run no guest, so one is booted to see."""

import json
import os
import platform
import subprocess
import tempfile

import image
from machine import basic_arguments
from util import digest, dying_with_us, find_program, locked, say, tail

LIMIT = 30


def _probe(cache):
    kernel = image.kernel(cache, "bookworm")
    with tempfile.TemporaryDirectory(prefix="pmem-vm-") as directory:
        console = os.path.join(directory, "console")
        argv = basic_arguments(True, kernel.vmlinuz, image.initrd(cache, kernel),
                               ["vm.probe", "loglevel=1"], console)
        try:
            subprocess.run(argv + ["-m", "512M", "-no-reboot"], stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=LIMIT, preexec_fn=dying_with_us())
        except subprocess.TimeoutExpired:
            return False
        return "a guest runs here" in tail(console)


def works(cache):
    """Whether to use KVM; the answer is kept for this kernel and this QEMU."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    key = digest(platform.release(), ("file", "/proc/version"),
                 str(os.stat(find_program("qemu-system-x86_64")).st_mtime_ns))
    path = os.path.join(cache, f"kvm-{key}.json")
    with locked(os.path.join(cache, "kvm")):
        if not os.path.exists(path):
            say("trying KVM, once")
            with open(path + ".new", "w", encoding="ascii") as f:
                json.dump({"works": _probe(cache)}, f)
            os.rename(path + ".new", path)
    with open(path, encoding="ascii") as f:
        return json.load(f)["works"]
