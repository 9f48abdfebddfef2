# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads what record.c has written, and tells what a power cut would have left at each moment of it.

A flush makes durable what the memory held when it began, once it has succeeded. If it fails, the host takes those pages
for clean: they are lost until somebody stores there again. Any of what had been stored, and was not durable yet, may
be on the disk all the same.
"""

import collections
import mmap
import struct

PAGE = 4096
ENTRY = struct.Struct("=IIQQQq")
Event = collections.namedtuple("Event", "type number nsec told result pages")
Interval = collections.namedtuple("Interval", "index image told_from told_to durable leaks")


class Trace:
    """The events of one trace; `told` are the promises, in the order they were made."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        self.events, self.told = [], ()
        at = 0
        while at < len(self.data):
            kind, n_pages, number, nsec, told, result = ENTRY.unpack_from(self.data, at)
            at += ENTRY.size
            if chr(kind) == "T":
                self.told = struct.unpack_from(f"={told}Q", self.data, at)
                break
            pages = {}
            for _ in range(n_pages):
                pages[struct.unpack_from("=I", self.data, at)[0]] = at + 4
                at += 4 + PAGE
            self.events.append(Event(chr(kind), number, nsec, told, result, pages))

    def page(self, reference):
        return self.data[reference:reference + PAGE]


class Disk:
    """What is durable, and what may be: pages by number, each with where its content stands in the trace."""

    def __init__(self, pages):
        self.durable, self.image = dict(pages), 0
        self.dirty, self.lost, self.open = {}, {}, {}

    def begin(self, event):
        self.dirty.update(event.pages)
        for page in event.pages:
            self.lost.pop(page, None)
        self.open[event.number] = dict(self.dirty)

    def end(self, event):
        took = self.open.pop(event.number, {})
        if event.result == 0:
            new = {page: ref for page, ref in took.items() if self.durable.get(page) != ref}
            self.durable.update(new)
            self.image += bool(new)
        else:
            self.lost.update(took)
            for other in self.open.values():
                drop(other, took)
        drop(self.dirty, took)

    def step(self, event):
        if event.type == "B":
            self.begin(event)
        elif event.type == "E":
            self.end(event)


def drop(pages, taken):
    for page, reference in taken.items():
        if pages.get(page) == reference:
            del pages[page]


def intervals(trace):
    """The time between each two events: what is durable then, what may have leaked, and what was promised meanwhile."""
    events = trace.events
    disk = Disk(events[0].pages)
    for i, event in enumerate(events[:-1]):
        disk.step(event)
        following = events[i + 1]
        leaks = {**disk.lost, **disk.dirty}
        if following.type in "BL":
            leaks.update(following.pages)
        yield Interval(i, disk.image, event.told, following.told, disk.durable, leaks)
