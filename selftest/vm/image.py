# SPDX-License-Identifier: LGPL-2.1-or-later
"""What stays the same from run to run, built once and kept: base image, kernels, initrd."""

import glob
import json
import os
import re
import shutil
import stat
import tarfile

import archive
from util import VmError, call, compile_c, digest, find_program, locked, say, scratch

# The userland. Nothing here is the agent's; its libraries are, since `make install` brings none.
PACKAGES = """
    systemd systemd-sysv udev dbus polkitd kmod procps util-linux mount
    libndctl6 libdaxctl1 libmount1 libsmartcols1 libjson-c5 libinih1 libpmem2 libsystemd0 libudev1
    ndctl daxctl e2fsprogs xfsprogs dmsetup
    python3-minimal python3-dbus python3-gi socat strace libasan8 libubsan1
""".split()

# Raise when what is built here from the same packages becomes something else.
BASE_VERSION = "1"
KERNEL_VERSION = "2"

KERNEL_SUITES = {
    "bookworm": "bookworm",
    "backports": "bookworm-backports",
    "trixie": "trixie",
    "sid": "sid",
}

# What must work before the root file system is there; a built-in one needs no module.
INITRD_MODULES = ["virtio_pci", "virtio_blk", "ext4", "overlay", "virtio_console"]

LEAVE_OUT = ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt",
             "var/lib/apt/lists", "usr/lib/python3/dist-packages/__pycache__"]


def ext4_image(directory, target, as_root=()):
    """A read-only ext4 image of @directory, without journal and check sums: guests only read it."""
    used = int(call(["du", "-s", "--apparent-size", "-k", directory]).split()[0])
    entries = sum(len(d) + len(f) for _, d, f in os.walk(directory))
    kib = used + used // 5 + entries * 5 + 16384
    with open(target, "wb") as f:
        f.truncate(kib * 1024)
    call([*as_root, find_program("mkfs.ext4"), "-q", "-F", "-b", "4096", "-m", "0",
          "-N", str(entries + 1024), "-E", "root_owner=0:0,lazy_itable_init=1",
          "-O", "^has_journal,^resize_inode,^metadata_csum", "-d", directory, target])


class Base:
    """The root file system every guest reads: an image, and the modes of its directories."""

    def __init__(self, directory):
        self.image = os.path.join(directory, "base.ext4")
        with open(os.path.join(directory, "dirs.json"), encoding="utf-8") as f:
            known = json.load(f)
        self.dir_modes = known["dirs"]
        self.links = known["links"]


def _directory_facts(tar_path):
    """Modes of directories and top-level links: what an overlay on top of them must repeat."""
    dirs, links = {}, {}
    with tarfile.open(tar_path) as tar:
        for member in tar:
            name = member.name.removeprefix("./").strip("/")
            if member.isdir():
                dirs[name] = member.mode
            elif member.issym() and "/" not in name:
                links[name] = member.linkname
    return {"dirs": dirs, "links": links}


def _build_base(directory, packages, cache):
    """mmdebstrap to a tar file, the tar file to an image."""
    log = os.path.join(cache, "image.log")
    sources = os.path.join(directory, "sources.list")
    tar_path = os.path.join(directory, "base.tar")
    with open(sources, "w", encoding="ascii") as f:
        f.write(archive.sources_list(archive.BASE_SUITE))
    call(["mmdebstrap", "--variant=minbase", "--architectures=amd64",
          "--include=" + ",".join(packages), '--aptopt=APT::Install-Recommends "false"',
          *[f"--dpkgopt=path-exclude=/{d}/*" for d in LEAVE_OUT if d.startswith("usr")],
          "--customize-hook=rm -f \"$1\"/etc/resolv.conf \"$1\"/etc/hostname",
          archive.BASE_SUITE, tar_path, sources],
         log=log, env={**os.environ, "TMPDIR": directory})
    root = os.path.join(directory, "root")
    os.mkdir(root)
    image = os.path.join(directory, "base.ext4")
    script = 'tar -C "$1" --exclude=./dev -xpf "$2" && cd "$1" && rm -rf "${@:4}" && mkdir -p dev'
    if os.geteuid() == 0:
        call(["bash", "-c", script, "bash", root, tar_path, image, *LEAVE_OUT])
        ext4_image(root, image)
    else:
        state = os.path.join(directory, "fakeroot")
        call(["fakeroot", "-s", state, "bash", "-c", script, "bash", root, tar_path, image,
              *LEAVE_OUT])
        ext4_image(root, image, as_root=("fakeroot", "-i", state))
    with open(os.path.join(directory, "dirs.json"), "w", encoding="utf-8") as f:
        json.dump(_directory_facts(tar_path), f)
    shutil.rmtree(root)
    os.unlink(tar_path)


def base_image(cache, extra=()):
    """The base for these extra packages, built unless it is there already."""
    packages = PACKAGES + sorted(set(extra) - set(PACKAGES))
    key = digest(BASE_VERSION, " ".join(packages), " ".join(LEAVE_OUT))
    target = os.path.join(cache, "base", key)
    with locked(target):
        if not os.path.isdir(target):
            say("building the guest's root file system" +
                (f" with {' '.join(sorted(extra))}" if extra else "") + ", once (a minute)")
            with scratch(target) as directory:
                _build_base(directory, packages, cache)
                os.rename(directory, target)
                os.utime(target)
    return Base(target)


class Kernel:
    """A bootable kernel: vmlinuz, its version, an image of its modules and their directory."""

    def __init__(self, directory):
        self.dir = directory
        self.vmlinuz = os.path.join(directory, "vmlinuz")
        self.image = os.path.join(directory, "modules.ext4")
        self.modules = glob.glob(os.path.join(directory, "root/usr/lib/modules/*"))[0]
        self.version = os.path.basename(self.modules)


def _first(patterns, root):
    for pattern in patterns:
        found = sorted(glob.glob(os.path.join(root, pattern)))
        if found:
            return found[0]
    raise VmError(f"{root}: has none of {', '.join(patterns)}")


def _assemble_kernel(source, directory):
    """From an unpacked package (or the like) to vmlinuz, modules tree and module image."""
    vmlinuz = _first(["boot/vmlinuz-*", "vmlinuz*", "bzImage", "usr/lib/modules/*/vmlinuz"], source)
    modules = os.path.dirname(_first(
        ["lib/modules/*/kernel", "usr/lib/modules/*/kernel", "modules/*/kernel", "*/kernel"], source))
    version = os.path.basename(modules)
    target = os.path.join(directory, "root/usr/lib/modules", version)
    shutil.copy(vmlinuz, os.path.join(directory, "vmlinuz"))
    shutil.copytree(modules, target, symlinks=True,
                    ignore=lambda d, names: [n for n in names if n in ("build", "source", "vmlinuz")])
    os.symlink("usr/lib", os.path.join(directory, "root/lib"))
    packed = glob.glob(os.path.join(target, "**/*.ko.xz"), recursive=True)
    for start in range(0, len(packed), 500):
        call(["xz", "-d", "-T0", *packed[start:start + 500]])
    call(["depmod", "-b", os.path.join(directory, "root"), version])
    os.unlink(os.path.join(directory, "root/lib"))
    ext4_image(os.path.join(directory, "root"), os.path.join(directory, "modules.ext4"))


def kernel(cache, which):
    """The kernel named on the command line: a suite's, or one in a directory."""
    if which in KERNEL_SUITES:
        key = f"{which}-{KERNEL_VERSION}"
    elif os.path.isdir(which):
        stamps = sorted((p, os.stat(p).st_mtime_ns) for p in
                        glob.glob(os.path.join(which, "**/*vmlinuz*"), recursive=True) +
                        glob.glob(os.path.join(which, "**/modules.order"), recursive=True))
        key = "dir-" + digest(KERNEL_VERSION, os.path.realpath(which), repr(stamps))
    else:
        raise VmError(f"--kernel {which}: neither a directory nor one of {', '.join(KERNEL_SUITES)}")
    target = os.path.join(cache, "kernel", key)
    with locked(target):
        if not os.path.isdir(target):
            with scratch(target) as directory:
                source = which
                if which in KERNEL_SUITES:
                    say(f"fetching the kernel of {KERNEL_SUITES[which]}, once")
                    source = os.path.join(directory, "unpacked")
                    for deb in archive.kernel_packages(cache, KERNEL_SUITES[which], directory):
                        call(["dpkg-deb", "-x", deb, source])
                        os.unlink(deb)
                _assemble_kernel(source, directory)
                shutil.rmtree(os.path.join(directory, "unpacked"), ignore_errors=True)
                os.rename(directory, target)
    return Kernel(target)


def _module_order(modules, wanted):
    """Paths of the wanted modules and all they need, in the order they have to be inserted."""
    def name_of(path):
        return re.sub(r"\.ko$", "", os.path.basename(path)).replace("-", "_")

    depends = {}
    with open(os.path.join(modules, "modules.dep"), encoding="ascii") as f:
        for line in f:
            path, _, needs = line.partition(":")
            depends[name_of(path)] = [path, needs.split()]
    order = []
    for name in wanted:
        if name not in depends:
            continue                    # built in; a real lack shows when the guest boots
        path, needs = depends[name]
        order += [p for p in reversed(needs) if p not in order]
        order += [path] if path not in order else []
    return order


def cpio_entry(name, data=b"", mode=stat.S_IFREG | 0o644, number=0):
    """One member of a newc archive."""
    header = "070701" + "".join(f"{v:08x}" for v in (
        number, mode, 0, 0, 2 if stat.S_ISDIR(mode) else 1, 0, len(data), 0, 0, 0, 0,
        len(name) + 1, 0))
    head = header.encode() + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def initrd(cache, k):
    """init, the modules and mount points, for one kernel."""
    init = compile_c(cache, "init", ["guest/init.c"], ["-static"])
    target = os.path.join(k.dir, "initrd-" + digest(("file", init), " ".join(INITRD_MODULES)))
    if os.path.exists(target):
        return target
    order = _module_order(k.modules, INITRD_MODULES)
    parts = [cpio_entry(d, mode=stat.S_IFDIR | 0o755)
             for d in ("dev", "proc", "sys", "base", "kernel", "rw", "root", "m")]
    with open(init, "rb") as f:
        parts.append(cpio_entry("init", f.read(), stat.S_IFREG | 0o755))
    for i, path in enumerate(order):
        with open(os.path.join(k.modules, path), "rb") as f:
            parts.append(cpio_entry(f"m/{i:02}", f.read()))
    parts.append(cpio_entry("TRAILER!!!"))
    with open(f"{target}.{os.getpid()}", "wb") as f:
        f.write(b"".join(parts))
    os.rename(f.name, target)
    return target
