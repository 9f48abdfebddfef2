# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads what record.c has written, and tells what a power cut would have left at each moment of it.

A flush makes durable what the memory held when it began, once it has succeeded. If it fails, the host takes those pages
for clean: they are lost until somebody stores there again. Any of what had been stored, and was not durable yet, may
be on the disk all the same.

Power goes for all regions at once. So the traces of several, taken by the same clock and with the same board, are one.
"""

import collections
import itertools
import mmap
import struct

PAGE = 4096
OF_REGION = 1 << 32     # pages of the second region are numbered from here, and so on
ENTRY = struct.Struct("=IIQQQq")
Event = collections.namedtuple("Event", "type region number nsec told result pages")
Interval = collections.namedtuple("Interval", "index image told_from told_to durable leaks")


def read_trace(data, region):
    """(events, promises) of one trace."""
    events, at = [], 0
    while at < len(data):
        kind, n_pages, number, nsec, told, result = ENTRY.unpack_from(data, at)
        at += ENTRY.size
        if chr(kind) == "T":
            return events, struct.unpack_from(f"={told}Q", data, at)
        pages = {}
        for _ in range(n_pages):
            pages[region * OF_REGION + struct.unpack_from("=I", data, at)[0]] = (region, at + 4)
            at += 4 + PAGE
        events.append(Event(chr(kind), region, number, nsec, told, result, pages))
    return events, ()


class Trace:
    """The events of the traces; `told` are the promises, in the order they were made."""

    def __init__(self, *paths):
        self.data, self.told, all_events = [], (), []
        for region, path in enumerate(paths):
            with open(path, "rb") as f:
                self.data.append(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
            events, told = read_trace(self.data[-1], region)
            all_events += events
            self.told = max(self.told, told, key=len)
        # They begin and end one after the other, with nothing under way.
        ends = {kind: [e for e in all_events if e.type == kind] for kind in "SL"}
        events = [together(ends["S"]), *sorted((e for e in all_events if e.type in "BE"), key=lambda e: e.nsec),
                  together(ends["L"])]
        # Each process counts before it reads the clock: what another has seen by then was there too.
        told = itertools.accumulate((e.told for e in events), max)
        self.events = [e._replace(told=n) for e, n in zip(events, told)]

    def page(self, reference):
        region, at = reference
        return self.data[region][at:at + PAGE]


def together(events):
    return events[0]._replace(pages={page: ref for e in events for page, ref in e.pages.items()},
                              told=max(e.told for e in events), nsec=max(e.nsec for e in events))


class Disk:
    """What is durable, and what may be: pages by number, each with where its content stands in the trace."""

    def __init__(self, pages):
        self.durable, self.image = dict(pages), 0
        self.dirty, self.lost, self.open = {}, {}, {}

    def begin(self, event):
        self.dirty.update(event.pages)
        for page in event.pages:
            self.lost.pop(page, None)
        self.open[event.region, event.number] = {page: ref for page, ref in self.dirty.items()
                                                 if page // OF_REGION == event.region}

    def end(self, event):
        took = self.open.pop((event.region, event.number), {})
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


def intervals(events):
    """The time between each two events: what is durable then, what may have leaked, and what was promised meanwhile."""
    disk = Disk(events[0].pages)
    for i, event in enumerate(events[:-1]):
        disk.step(event)
        following = events[i + 1]
        leaks = {**disk.lost, **disk.dirty}
        if following.type in "BL":
            leaks.update(following.pages)
        yield Interval(i, disk.image, event.told, following.told, disk.durable, leaks)
