# SPDX-License-Identifier: LGPL-2.1-or-later
"""Judges a trace of fixed pages: whether each cut point leaves what was promised by then, sector by sector."""

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


class Judge:
    """Counts, and the first violations with what led to them."""

    def __init__(self, path, seed=1):
        self.trace = crash.Trace(path)
        self.pages = Pages(self.trace)
        self.choice = random.Random(seed)
        base = self.trace.events[0].pages
        self.of = {page: slot for page, slot in ((p, self.pages.slot(ref)) for p, ref in base.items())
                   if slot != NOTHING}
        self.slots = {slot: page for page, slot in self.of.items()}
        if len(self.slots) != len(self.of):
            raise ValueError(f"{path}: two pages of one slot")
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
                self.violations.append((interval, self.told, variant, slot, sequence, sectors))

    def advance(self, interval):
        """What is durable now, where that has changed."""
        for slot, page in self.slots.items():
            self.held[slot] = self.pages.sectors(interval.durable[page])

    def run(self, limit=20):
        image = None
        for interval in crash.intervals(self.trace):
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

    def history(self, violation):
        """What led to it, and no more: the events that concern the page, and the promises of its slot."""
        interval, told, variant, slot, sequence, sectors = violation
        page = self.slots.get(slot)
        lines = [f"slot {slot} (page {page}): number {sequence} was promised, the image holds {sorted(set(sectors))}",
                 f"  cut after promise {told}, in image {interval.image}, leaked: {variant}"]
        before = 0
        for event in self.trace.events[:interval.index + 2]:
            for i in range(before, event.told):
                word = self.trace.told[i]
                if word >> 32 & 0xffff == slot:
                    lines.append(f"  promise {i}: number {word & 0xffffffff} is durable")
            before = event.told
            if page in event.pages:
                lines.append(f"  flush {event.number} begins, and finds number "
                             f"{sorted(set(self.pages.sectors(event.pages[page])))} stored")
            elif event.type == "E" and event.result < 0:
                lines.append(f"  flush {event.number} fails: {event.result}")
            elif event.type in "BE":
                lines.append(f"  flush {event.number} {'begins' if event.type == 'B' else 'succeeds'}")
        return lines[:2] + lines[2:][-12:]
