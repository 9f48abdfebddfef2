# SPDX-License-Identifier: LGPL-2.1-or-later
"""Judges a trace of fixed pages: whether each cut point leaves what was promised by then, sector by sector."""

import collections
import random
import struct

import crash

SECTOR, MAGIC, MIX = 512, 0x746f6c5365766f72, 0x9e3779b97f4a7c15
VARIANTS = ("none", "all", "pages", "pages", "torn", "torn")
PER_PAGE = crash.PAGE // SECTOR
WORD = (1 << 64) - 1
UNMIX = pow(MIX, -1, 1 << 64)
NOTHING = -1    # a sector that is none of ours, or broken
BROKEN = (NOTHING,) * PER_PAGE


def read_sector(data, at):
    """(slot, sequence number). Of a store under way any word may be there already: then it is the older number."""
    magic, place, sequence = struct.unpack_from("=QQQ", data, at)
    if magic != MAGIC or place >> 32 != at % crash.PAGE // SECTOR:
        return NOTHING, NOTHING
    words = struct.unpack_from("=61Q", data, at + 24)
    numbers = {word * UNMIX - k & WORD for k, word in enumerate(words, 3)} | {sequence}
    return place & 0xffffffff, min(numbers) if max(numbers) < 1 << 32 else NOTHING


class Pages:
    """What each version of a page holds: the sequence numbers of its sectors. Looked at once each."""

    def __init__(self, trace):
        self.trace, self.known = trace, {}

    def slot(self, reference):
        """The slot that the page is of, by its first sector."""
        return read_sector(self.trace.page(reference), 0)[0]

    def sectors(self, reference):
        if reference not in self.known:
            data = self.trace.page(reference)
            self.known[reference] = tuple(read_sector(data, i * SECTOR)[1] for i in range(PER_PAGE))
        return self.known[reference]


Violation = collections.namedtuple("Violation", "index told variant slot sequence sectors leaked")


class Judge:
    """Counts, and the first violations with what led to them."""

    def __init__(self, *paths, seed=1):
        self.trace = crash.Trace(*paths)
        self.pages = Pages(self.trace)
        self.choice = random.Random(seed)
        base = self.trace.events[0].pages
        self.of = {page: slot for page, slot in ((p, self.pages.slot(ref)) for p, ref in base.items())
                   if slot != NOTHING}
        self.slots = {slot: page for page, slot in self.of.items()}
        if len(self.slots) != len(self.of):
            raise ValueError(f"{paths[0]}: two pages of one slot")
        self.held = {slot: self.pages.sectors(base[page]) for slot, page in self.slots.items()}
        self.promised = dict.fromkeys(self.slots, 0)
        self.points, self.images, self.violations, self.told = set(), set(), [], 0
        self.n_checked = 0

    def leak(self, leaks, variant):
        """The slots that are otherwise than in the image, with what their sectors hold."""
        ours = sorted((self.of[page], ref) for page, ref in leaks.items() if page in self.of)
        if variant == "none":
            return {}
        share = 1 if variant == "all" else self.choice.random()
        chosen = {slot: self.pages.sectors(ref) for slot, ref in ours if self.choice.random() < share}
        if variant == "torn":
            chosen = {slot: tuple(new if self.choice.random() < 0.5 else old
                                  for old, new in zip(self.held[slot], sectors)) for slot, sectors in chosen.items()}
        return chosen

    def check(self, interval, variant, leaked):
        image = hash(tuple(sorted({**self.held, **leaked}.items())))
        self.points.add((image, self.told, hash(frozenset(leaked.items()))))
        self.images.add(image)
        for slot, sequence in self.promised.items():
            self.n_checked += 1
            sectors = leaked.get(slot) or self.held.get(slot, BROKEN)
            if min(sectors) < sequence:
                self.violations.append(Violation(interval.index, self.told, variant, slot, sequence, sectors,
                                                 leaked.get(slot)))

    def advance(self, interval):
        """What is durable now, where that has changed."""
        for slot, page in self.slots.items():
            self.held[slot] = self.pages.sectors(interval.durable[page])

    def run(self, limit=20):
        image = None
        for interval in crash.intervals(self.trace.events):
            if interval.image != image:
                self.advance(interval)
                image = interval.image
            for _ in range(interval.told_from, interval.told_to):
                word = self.trace.told[self.told]
                slot, sequence = word >> 32 & 0xffff, word & 0xffffffff
                self.promised[slot] = max(self.promised.get(slot, 0), sequence)
                self.told += 1
                self.check(interval, "none", {})
            for variant in VARIANTS:
                self.check(interval, variant, self.leak(interval.leaks, variant))
            if len(self.violations) > limit:
                break
        return self

    # ---- a violation, made as short as it goes ----

    def number_of(self, reference):
        """The number that a whole version of a page has; NOTHING if it is none."""
        return min(self.pages.sectors(reference)) if reference else NOTHING

    def promise_of(self, violation):
        """Which promise it was that is broken: the first of that slot that the image falls short of."""
        held = min(violation.sectors)
        for i, word in enumerate(self.trace.told[:violation.told]):
            if word >> 32 & 0xffff == violation.slot and word & 0xffffffff > held:
                return i, word & 0xffffffff
        raise ValueError("no promise is broken")

    def versions_taken(self, page, upto):
        """What each flush took of the page when it began, by its region and number."""
        disk, taken = crash.Disk(self.trace.events[0].pages), {}
        for event in self.trace.events[:upto + 1]:
            disk.step(event)
            if event.type == "B":
                taken[event.region, event.number] = disk.open[event.region, event.number].get(page)
        return taken

    def is_broken(self, events, page, sequence):
        """Whether a power cut after these events leaves less than that of the page, nothing leaked."""
        last = list(crash.intervals([*events, events[-1]._replace(type="L", pages={})]))[-1]
        return self.number_of(last.durable.get(page)) < sequence

    def shrink(self, violation):
        """(events, promise, its number): the events without which it would be another story, at the earliest cut.

        A flush that took what was promised stays in any case, since it may be what makes the promise true. Of the others
        each is left out, with what was stored elsewhere, if the promise is broken without it too.
        """
        promise, sequence = self.promise_of(violation)
        page, events = self.slots[violation.slot], self.trace.events
        upto = next(i for i, event in enumerate(events[1:]) if event.told > promise or i >= violation.index)
        if not self.is_broken(events[:upto + 1], page, sequence):
            upto = violation.index
        taken = self.versions_taken(page, upto)
        short = [event._replace(pages={page: taken[event.region, event.number]})
                 if event.type == "B" and taken[event.region, event.number] else event._replace(pages={})
                 for event in events[1:upto + 1]]
        base = [events[0]._replace(pages={page: events[0].pages.get(page)})]
        flushes = list(dict.fromkeys((event.region, event.number) for event in short))
        last = flushes[-1:]     # what was under way, or just over, when the promise was made
        for key in flushes:
            without = [event for event in short if (event.region, event.number) != key]
            if [key] != last and self.number_of(taken.get(key)) < sequence \
                    and self.is_broken(base + without, page, sequence):
                short = without
        disk = crash.Disk(events[0].pages)
        for event in events[1:events.index(next(e for e in events if e[:3] == short[0][:3])) if short else 1]:
            disk.step(event)
        return [base[0]._replace(pages={page: disk.durable.get(page)}), *short], promise, sequence

    def history(self, violation, door=""):
        """Who was told what, when, and what the image held."""
        if violation.slot not in self.slots:
            promise, sequence = self.promise_of(violation)
            return [f"slot {violation.slot}: number {sequence} was promised, and no image ever had a page of it",
                    f"             promise {promise} to lane {violation.slot // 8}{door}: number {sequence} is durable"]
        events, promise, sequence = self.shrink(violation)
        page, began = self.slots[violation.slot], self.trace.events[0].nsec

        def line(event, text):
            return f"  {(event.nsec - began) / 1e9:9.4f} s  flush {event.number}" \
                   f"{f' of region {event.region}' if event.region else ''} {text}"

        lines = [f"             durable is number {self.number_of(events[0].pages.get(page))}"]
        said = f"             promise {promise} to lane {violation.slot // 8}{door}: number {sequence} is durable"
        for event in events[1:]:
            if event.told > promise and said:
                lines.append(said)
                said = None
            if event.type == "B":
                found = event.pages.get(page)
                lines.append(line(event, f"begins, takes number {self.number_of(found)} along" if found
                                  else "begins, finds nothing new there"))
            else:
                lines.append(line(event, f"fails: {event.result}" if event.result < 0 else "succeeds"))
        lines += [said] if said else []
        held = sorted(set(violation.sectors))
        lines.append(f"             power is cut: the image holds number {', '.join(map(str, held))}"
                     + (f", of it {violation.variant} leaked" if violation.leaked else ", nothing leaked"))
        return [f"slot {violation.slot} (page {page}): number {sequence} was promised and is not there; "
                f"{len(events) - 1} of {violation.index} events are left"] + lines

    def shortest(self, door=""):
        """The history of the violation that has the shortest."""
        return min((self.history(v, door) for v in self.violations), key=len)
