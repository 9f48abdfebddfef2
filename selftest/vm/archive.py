# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian archive this machine already uses: where it is, and packages from its suites."""

import glob
import os
import re

from util import VmError, call, locked

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BASE_SUITE = "bookworm"


def _deb822_entries(path):
    """The stanzas of a .sources file, as (uris, suites, signed_by)."""
    with open(path, encoding="utf-8", errors="replace") as f:
        text = re.sub(r"^#.*\n", "", f.read(), flags=re.M)
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*((?:.*)(?:\n[ \t].*)*)", stanza, flags=re.M))
        fields = {k.lower(): v.split() for k, v in fields.items()}
        if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"])[0] != "no":
            yield (fields.get("uris", []), fields.get("suites", []),
                   " ".join(fields.get("signed-by", [])))


def _list_entries(path):
    """The lines of a .list file, in the same form."""
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            m = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)", line)
            if m:
                signed = re.search(r"signed-by=(\S+)", m[1] or "")
                yield [m[2]], [m[3]], signed[1] if signed else ""


def sources():
    """[(uri, suite)] of this machine's entries for Debian's own bookworm suites."""
    found = []
    entries = []
    for path in ["/etc/apt/sources.list"] + sorted(glob.glob("/etc/apt/sources.list.d/*")):
        if path.endswith(".sources"):
            entries += _deb822_entries(path)
        elif path.endswith(".list") and os.path.exists(path):
            entries += _list_entries(path)
    known = {BASE_SUITE, f"{BASE_SUITE}-updates", f"{BASE_SUITE}-security"}
    for uris, suites, signed_by in entries:
        if signed_by and os.path.basename(signed_by) != os.path.basename(KEYRING):
            continue
        found += [(uri, suite) for uri in uris for suite in suites
                  if suite in known and (uri, suite) not in found]
    if not any(suite == BASE_SUITE for _, suite in found):
        raise VmError(f"this machine's apt has no Debian entry for {BASE_SUITE}: "
                      "add one below /etc/apt/sources.list.d, any mirror will do")
    return found


def sources_list(suite):
    """A sources.list for @suite; the other suites live on the same mirror as bookworm."""
    here = sources()
    if suite != BASE_SUITE:
        mirror = next(uri for uri, name in here if name == BASE_SUITE)
        here = [(mirror, suite)]
    return "".join(f"deb [signed-by={KEYRING}] {uri} {name} main\n" for uri, name in here)


class Suite:
    """One suite, read with apt and a configuration of its own, so that the machine's stays as is."""

    def __init__(self, cache, name, architecture="amd64"):
        self.name, self.architecture = name, architecture
        self.dir = os.path.join(cache, "apt", name if architecture == "amd64" else f"{name}-{architecture}")
        self.options = [
            "-q", "-oDir::Etc=" + self.dir, "-oDir::Etc::SourceParts=/dev/null",
            "-oDir::Etc::SourceList=" + os.path.join(self.dir, "sources.list"),
            "-oDir::State=" + os.path.join(self.dir, "state"),
            "-oDir::State::status=/dev/null", "-oAPT::Sandbox::User=root",
            "-oDir::Cache=" + os.path.join(self.dir, "cache"),
            f"-oAPT::Architecture={architecture}", f"-oAPT::Architectures={architecture}",
            "-oAcquire::Languages=none",
        ]

    def update(self):
        for part in ("state/lists/partial", "cache/archives/partial", "preferences.d",
                     "apt.conf.d"):
            os.makedirs(os.path.join(self.dir, part), exist_ok=True)
        with open(os.path.join(self.dir, "sources.list"), "w", encoding="ascii") as f:
            lines = sources_list(self.name).splitlines(keepends=True)
            # Once a release is old its updates are not built for all architectures: the release itself is enough.
            f.writelines(l for l in lines if self.architecture == "amd64" or f" {self.name} " in l)
        call(["apt-get", *self.options, "update"])

    def depends(self, package):
        """Names in the Depends of the newest @package, or None if there is none."""
        text = call(["apt-cache", *self.options, "show", "--no-all-versions", package])
        m = re.search(r"^Depends: (.*)$", text, flags=re.M)
        return re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9.+-]*)", m[1]) if m else []

    def download(self, packages, directory):
        call(["apt-get", *self.options, "download", *packages], cwd=directory)

    def download_all(self, packages):
        """These and what they depend on; the .deb files' names, in a directory that is emptied the next time."""
        directory = os.path.join(self.dir, "cache/archives")
        call(["apt-get", *self.options, "clean"])
        call(["apt-get", *self.options, "-y", "--download-only", "--no-install-recommends", "install", *packages])
        return sorted(glob.glob(os.path.join(directory, "*.deb")))


def kernel_packages(cache, suite_name, directory):
    """Download what makes up linux-image-cloud-amd64 of a suite; the .deb files' names."""
    suite = Suite(cache, suite_name)
    with locked(suite.dir):
        suite.update()
        wanted, todo = [], ["linux-image-cloud-amd64"]
        while todo:
            name = todo.pop()
            if name in wanted:
                continue
            wanted.append(name)
            todo += [d for d in suite.depends(name) if re.match(r"linux-(image|binary|modules|base)-.*[0-9]\.", d)]
        suite.download(wanted, directory)
    return sorted(glob.glob(os.path.join(directory, "*.deb")))
