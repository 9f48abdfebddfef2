# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cut points of a trace, and the image that a power cut would leave at each: in another region, to be looked at."""

import ctypes
import json
import os
import random
import struct

import crash
from control import Served, Usage, verb
from util import VmError

PUNCH_HOLE = 3      # and keep the size


def trace_path(session, name):
    return os.path.join(os.path.dirname(session.faults.log_path), f"{name}.trace")


@verb("record start", "NAME REGION [BOARD_REGION]", "what each host flush finds changed goes to NAME.trace, see record.c")
async def record_start(session, words):
    if len(words) not in (2, 3):
        raise Usage("which name, which region?")
    paths = [session.region(words[1]).backing, trace_path(session, words[0])]
    paths += [session.region(words[2]).backing] if len(words) == 3 else []
    await session.faults.send("record", words[1], " ".join(paths))


@verb("record stop", "REGION", "that is all")
async def record_stop(session, words):
    if len(words) != 1:
        raise Usage("which region?")
    await session.faults.send("record", words[0])


@verb("serve record start", "NAME REGION [BOARD_REGION]", "the same of the flushes of `pmemctl serve`")
async def serve_record_start(session, words):
    await record_start(Served(session), words)


@verb("serve record stop", "REGION", "that is all")
async def serve_record_stop(session, words):
    await record_stop(Served(session), words)


def is_commit(data):
    """The record by which ext4's journal says that a transaction is whole."""
    return struct.unpack_from(">II", data) == (0xc03b3998, 2)


def choose(trace, interval, variant):
    """Which of the pages have leaked; `variant` is none, all, or a seed for some.

    A commit record does not leak without its transaction. A disk would not do that, but virtio-pmem under Linux 6.1 lets
    it happen: it stores the record before the flush that was to come first has ended. Then ext4 wants e2fsck after a
    power cut, and has lost what was durable long before; nothing in the guest can help that.
    """
    if variant in ("none", "all"):
        return {} if variant == "none" else dict(interval.leaks)
    choice = random.Random(variant)
    share = choice.random()
    chosen = {page: ref for page, ref in sorted(interval.leaks.items()) if choice.random() < share}
    if len(chosen) == len(interval.leaks):
        return chosen
    return {page: ref for page, ref in chosen.items() if not is_commit(trace.page(ref))}


TRIES = 60      # looks at images, to make one violation shorter


class Replay:
    """The cut points that were chosen of a trace, one after the other."""

    def __init__(self, path, number, seed):
        self.trace = crash.Trace(path)
        choice = random.Random(seed)
        turns = {}
        for turn in range(2 * number):
            turns.setdefault(choice.randrange(len(self.trace.events) - 1), []).append(turn)
        known, cuts = set(), []
        for row in crash.intervals(self.trace.events):
            for turn in turns.get(row.index, ()):
                variant = ("none", "all", f"{seed}.{turn}", f"{seed}.{turn}")[turn % 4]
                leaked = choose(self.trace, row, variant)
                key = row.image, row.told_to, frozenset(leaked.items())
                if key not in known:
                    known.add(key)
                    cuts.append((row._replace(durable=dict(row.durable)), leaked))
        choice.shuffle(cuts)
        del cuts[number:]
        self.n_images = len({(row.image, frozenset(leaked.items())) for row, leaked in cuts})
        self.cuts = iter(cuts)
        self.current = self.shrinking = None

    def write(self, path, row, leaked):
        """The file becomes what that cut leaves; its description."""
        self.current = row, leaked
        fd = os.open(path, os.O_WRONLY)
        try:
            size = os.fstat(fd).st_size
            if ctypes.CDLL(None, use_errno=True).fallocate(fd, PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(size)) < 0:
                raise OSError(ctypes.get_errno(), "fallocate")
            for page, reference in {**row.durable, **leaked}.items():
                os.pwrite(fd, self.trace.page(reference), page * crash.PAGE)
        finally:
            os.close(fd)
        return {"told": row.told_to, "image": row.image, "index": row.index, "leaked": len(leaked)}

    def write_next(self, path):
        """The same, or None if there are no more."""
        row, leaked = next(self.cuts, (None, None))
        self.shrinking = None
        return self.write(path, row, leaked) if row else None

    def interval(self, index):
        return next(row for row in crash.intervals(self.trace.events) if row.index == index)

    def candidates(self, row, leaked):
        """Yields cuts that might be broken too, and is sent whether they are; returns the shortest that is."""
        if leaked and (yield row, {}):
            leaked = {}
        first, last = 0, row.index      # the earliest that is broken: with nothing promised none is
        while first < last:
            middle = self.interval((first + last) // 2)
            kept = {page: middle.leaks[page] for page in leaked if page in middle.leaks}
            if (yield middle, kept):
                row, leaked, last = middle, kept, middle.index
            else:
                first = middle.index + 1
        parts = 2                       # and the pages that must have leaked
        while len(leaked) > 1 and parts <= len(leaked):
            pages = sorted(leaked)
            for i in range(parts):
                without = {page: leaked[page] for page in pages if page not in pages[i::parts]}
                if (yield row, without):
                    leaked, parts = without, max(2, parts - 1)
                    break
            else:
                parts = 2 * parts if parts < len(leaked) else len(leaked) + 1
        return row, leaked

    def shrink(self, path, broken):
        """The next cut to look at, or what all came to; `broken`: what the one before was, None at first."""
        try:
            if self.shrinking is None:
                self.best, self.tries = self.current, 0
                self.shrinking = self.candidates(*self.current)
                broken = None
            elif broken:
                self.best = self.current
            self.tries += 1
            if self.tries > TRIES:
                raise StopIteration
            return self.write(path, *self.shrinking.send(broken))
        except StopIteration:
            self.shrinking = None
            return {**self.write(path, *self.best), "shrunk": self.tries, "pages": sorted(self.best[1])[:8],
                    "history": self.history(self.best[0].index)}

    def history(self, index, n=8):
        began = self.trace.events[0].nsec
        what = {"B": "flush {} begins, {} pages are new", "E": "flush {} ends: {}", "S": "it begins"}
        return [f"{(e.nsec - began) / 1e9:.4f} s, {e.told} promises: "
                + what[e.type].format(e.number, e.result if e.type == "E" else len(e.pages))
                for e in self.trace.events[max(0, index + 1 - n):index + 1]]


@verb("replay start", "NAME NUMBER SEED", "choose so many cut points of NAME.trace; prints how many images they have")
async def replay_start(session, words):
    if len(words) != 3:
        raise Usage("NAME NUMBER SEED")
    session.replay = Replay(trace_path(session, words[0]), int(words[1]), words[2])
    return f"{session.replay.n_images}\n"


@verb("replay next", "REGION", "REGION becomes what the next of them leaves; prints what that is, or nothing")
async def replay_next(session, words):
    if len(words) != 1:
        raise Usage("which region?")
    region = session.region(words[0])
    if not getattr(session, "replay", None):
        raise VmError("nothing is replayed")
    cut = session.replay.write_next(region.backing)
    return json.dumps(cut) + "\n" if cut else ""


@verb("replay shrink", "REGION [broken|whole]", "the same, of cuts that might show what the last one showed, and are shorter")
async def replay_shrink(session, words):
    if not 1 <= len(words) <= 2:
        raise Usage("which region?")
    region = session.region(words[0])
    if not getattr(session, "replay", None):
        raise VmError("nothing is replayed")
    return json.dumps(session.replay.shrink(region.backing, words[1:] == ["broken"])) + "\n"
