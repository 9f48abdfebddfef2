# SPDX-License-Identifier: LGPL-2.1-or-later
"""The disk of one run: what lies on top of the base image in its guest."""

import os
import shutil
import stat

from util import HERE, TOP, VmError, call, compile_c, locked, parse_size

DISK_SIZE = parse_size("4G")
LIB = "usr/local/lib/vm"


class Stage:
    """A tree that becomes the upper layer of the guest's root file system."""

    def __init__(self, directory, base):
        self.root = os.path.join(directory, "upper")
        self.base = base
        os.makedirs(self.root)
        os.makedirs(os.path.join(directory, "work"))
        self.directory = directory

    def path(self, guest_path):
        """Where @guest_path lies in the tree; its parents are made, with the base's modes."""
        parts = [p for p in guest_path.split("/") if p]
        if not parts or ".." in parts:
            raise VmError(f"'{guest_path}' is no path for a file in the guest")
        if parts[0] in self.base.links:
            parts[:1] = self.base.links[parts[0]].split("/")
        for i in range(1, len(parts)):
            self.directory_at("/".join(parts[:i]))
        return os.path.join(self.root, *parts)

    def directory_at(self, name, mode=0o755):
        path = os.path.join(self.root, name)
        if not os.path.isdir(path):
            os.mkdir(path)
        os.chmod(path, self.base.dir_modes.get(name, mode))

    def add(self, source, guest_path):
        """Copy a file, link or tree; a tree is merged into what is there."""
        mode = os.lstat(source).st_mode
        target = self.path(guest_path)
        if stat.S_ISDIR(mode):
            self.directory_at(os.path.relpath(target, self.root), stat.S_IMODE(mode))
            for name in sorted(os.listdir(source)):
                self.add(os.path.join(source, name), f"{guest_path}/{name}")
            return
        if os.path.lexists(target):
            os.unlink(target)
        shutil.copy2(source, target, follow_symlinks=False)

    def add_all(self, directory):
        for name in sorted(os.listdir(directory)):
            self.add(os.path.join(directory, name), name)

    def link(self, to, guest_path):
        os.symlink(to, self.path(guest_path))

    def write(self, text, guest_path):
        with open(self.path(guest_path), "w", encoding="utf-8") as f:
            f.write(text)

    def make_disk(self, target):
        with open(target, "wb") as f:
            f.truncate(DISK_SIZE)
        as_root = () if os.geteuid() == 0 else ("fakeroot",)
        call([*as_root, "mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-N", "131072",
              "-J", "size=16", "-O", "^metadata_csum,^resize_inode",
              "-E", "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1",
              "-d", self.directory, target])


def _list(name):
    with open(os.path.join(HERE, "guest", name), encoding="ascii") as f:
        return [line.strip() for line in f if line.strip() and not line.startswith("#")]


def _add_tools(stage, cache):
    """Our own programs and units, and what is switched off."""
    stage.add_all(os.path.join(HERE, "guest", "root"))
    stage.add(compile_c(cache, "runner", ["guest/runner.c"], ["-static"]), f"{LIB}/runner")
    stage.add(compile_c(cache, "vm", ["guest/vm.c"], ["-static"]), "usr/local/bin/vm")
    for unit in _list("masked"):
        stage.link("/dev/null", f"etc/systemd/system/{unit}")
    for name in _list("generators-masked"):
        stage.link("/dev/null", f"etc/systemd/system-generators/{name}")
    stage.link("vm.target", "etc/systemd/system/default.target")
    stage.write("pmem-vm\n", "etc/hostname")
    stage.write("5ca1ab1e0ddba11c0ffee0fbadc0de01\n", "etc/machine-id")


def _install_agent(stage, cache, directory, build_dir):
    destination = os.path.join(directory, "installed")
    with locked(os.path.join(cache, "install")):
        call(["make", "-s", "install", f"DESTDIR={destination}", "prefix=/usr", f"O={build_dir}"],
             cwd=TOP)
    if not os.path.isdir(destination):
        raise VmError("`make install` put nothing into DESTDIR")
    stage.add_all(destination)
    shutil.rmtree(destination)


def script_path(index, path):
    return f"/{LIB}/scripts/{index}/{os.path.basename(path)}"


def make_disk(options, cache, base, directory):
    """Assemble the tree for these options and make the run's disk of it; returns its path."""
    stage = Stage(os.path.join(directory, "stage"), base)
    _add_tools(stage, cache)
    if options.agent:
        _install_agent(stage, cache, directory, options.build_dir)
    stage.write("pmem-agent\n" if options.enable else "", f"{LIB}/enable")
    for index, path in enumerate(options.scripts):
        stage.add(path, script_path(index, path))
        os.chmod(stage.path(script_path(index, path)), 0o755)
    for source, guest_path in options.copies:
        if guest_path.endswith("/"):
            guest_path += os.path.basename(source.rstrip("/"))
        stage.add(source, guest_path)
    target = os.path.join(directory, "disk.ext4")
    stage.make_disk(target)
    shutil.rmtree(stage.directory)
    return target
