# SPDX-License-Identifier: LGPL-2.1-or-later
"""What other architectures need here, built once and kept: Debian's files for them, and a pseries kernel with papr_scm."""

import glob
import os
import re
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "vm"))

import archive  # noqa: E402
from util import VmError, call, digest, locked, say, scratch  # noqa: E402

TRIPLET = "powerpc64le-linux-gnu"
SOURCE_PACKAGE = "linux-source-6.1"

# Raise when what is built here from the same inputs becomes something else.
KERNEL_VERSION = "2"
SYSROOT_VERSION = "1"

# TCG knows no dcbfps, dcbstps and phwsync: without their L bits they are dcbf, dcbst and sync, which it does know.
OPCODE_BITS = re.compile(r"(#define PPC_RAW_DCB(?:FPS|STPS)\(.*\)\s*\([^\n]*?)\s*\| ?\(\d+ << 21\)\)")


def _patch_opcodes(tree):
    path = os.path.join(tree, "arch/powerpc/include/asm/ppc-opcode.h")
    with open(path, encoding="utf-8") as f:
        text = f.read()
    text, n = OPCODE_BITS.subn(r"\1)", text)
    text, m = re.subn(r"(#define PPC_RAW_PHWSYNC\b[^\n]*)0x7c8004ac", r"\g<1>0x7c0004ac", text)
    if n != 2 or m != 1:
        raise VmError(f"{path}: has no PPC_RAW_DCBFPS, PPC_RAW_DCBSTPS and PPC_RAW_PHWSYNC as they are known here")
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def _unpack_source(cache, directory):
    """Debian's kernel source, unpacked; its version is the archive's newest of that package."""
    suite = archive.Suite(cache, archive.BASE_SUITE)
    with locked(suite.dir):
        suite.update()
        suite.download([SOURCE_PACKAGE], directory)
    call(["dpkg-deb", "-x", glob.glob(os.path.join(directory, "*.deb"))[0], directory])
    call(["tar", "-C", directory, "-xf", glob.glob(os.path.join(directory, "usr/src/linux-source-*.tar.xz"))[0]])
    return next(d for d in glob.glob(os.path.join(directory, "linux-source-*")) if os.path.isdir(d))


def kernel(cache):
    """vmlinux for qemu's pseries machine, with libnvdimm, papr_scm, ext4 and XFS built in."""
    config = os.path.join(HERE, "pseries.config")
    target = os.path.join(cache, "kernel", "pseries-" + digest(KERNEL_VERSION, ("file", config)))
    with locked(target):
        if not os.path.isdir(target):
            say("building a kernel for pseries, once (six minutes or more)")
            with scratch(target) as directory:
                tree = _unpack_source(cache, directory)
                _patch_opcodes(tree)
                make = ["make", "-C", tree, "ARCH=powerpc", f"CROSS_COMPILE={TRIPLET}-"]
                log = os.path.join(cache, "pseries-kernel.log")
                call([*make, "allnoconfig"], log=log, env={**os.environ, "KCONFIG_ALLCONFIG": config})
                call([*make, f"-j{len(os.sched_getaffinity(0))}", "vmlinux"], log=log)
                result = os.path.join(directory, "result")
                os.mkdir(result)
                call([f"{TRIPLET}-strip", "-o", os.path.join(result, "vmlinux"), os.path.join(tree, "vmlinux")])
                os.rename(result, target)
    return os.path.join(target, "vmlinux")


def sysroot(cache, architecture, packages):
    """The files of these packages and of what they depend on, unpacked and not set up; the directory."""
    key = digest(SYSROOT_VERSION, " ".join(sorted(packages)))
    target = os.path.join(cache, architecture, key)
    with locked(target):
        if not os.path.isdir(target):
            say(f"fetching Debian's packages for {architecture}, once")
            with scratch(target) as directory:
                suite = archive.Suite(cache, archive.BASE_SUITE, architecture)
                with locked(suite.dir):
                    suite.update()
                    debs = suite.download_all(packages)
                root = os.path.join(directory, "root")
                os.mkdir(root)
                # As in a merged /usr, before packages that still have them as directories.
                for name in ("bin", "sbin", "lib", "lib64"):
                    os.makedirs(os.path.join(root, "usr", name))
                    os.symlink(f"usr/{name}", os.path.join(root, name))
                for deb in debs:
                    call(["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" | tar -C "$2" --keep-directory-symlink '
                          "--exclude=./usr/share/doc --exclude=./usr/share/locale --exclude=./usr/share/man "
                          "--no-same-owner -xf -", "sh", deb, root])
                _make_links_relative(root)
                os.rename(root, target)
    return target


def _make_links_relative(root):
    """Absolute links would lead out of the tree."""
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(directory, name)
            if os.path.islink(path) and os.readlink(path).startswith("/"):
                to = os.path.relpath(root + os.readlink(path), directory)
                os.unlink(path)
                os.symlink(to, path)


def main():
    """kernel CACHE | sysroot CACHE ARCHITECTURE PACKAGE...: makes it if it is not there, and prints where it is."""
    what, cache, *words = sys.argv[1:]
    cache = os.path.realpath(cache)
    try:
        print(kernel(cache) if what == "kernel" else sysroot(cache, words[0], words[1:]))
    except VmError as e:
        sys.exit(f"cross: {e}")


if __name__ == "__main__":
    main()
