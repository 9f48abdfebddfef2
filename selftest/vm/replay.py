# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cut points of a trace, and the image that a power cut would leave at each: in another region, to be looked at."""

import ctypes
import json
import os
import random
import struct

import crash
from control import Usage, verb
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


class Replay:
    """The cut points that were chosen of a trace, one after the other."""

    def __init__(self, path, number, seed):
        self.trace = crash.Trace(path)
        choice = random.Random(seed)
        turns = {}
        for turn in range(2 * number):
            turns.setdefault(choice.randrange(len(self.trace.events) - 1), []).append(turn)
        known, cuts = set(), []
        for row in crash.intervals(self.trace):
            for turn in turns.get(row.index, ()):
                variant = ("none", "all", f"{seed}.{turn}", f"{seed}.{turn}")[turn % 4]
                leaked = choose(self.trace, row, variant)
                key = row.image, row.told_to, frozenset(leaked.items())
                if key not in known:
                    known.add(key)
                    cuts.append((row._replace(durable=dict(row.durable)), variant, leaked))
        choice.shuffle(cuts)
        del cuts[number:]
        self.n_images = len({(row.image, frozenset(leaked.items())) for row, _, leaked in cuts})
        self.cuts = iter(cuts)

    def write_next(self, path):
        """Its description, or None if there are no more."""
        row, variant, leaked = next(self.cuts, (None, None, None))
        if row is None:
            return None
        fd = os.open(path, os.O_WRONLY)
        try:
            size = os.fstat(fd).st_size
            if ctypes.CDLL(None, use_errno=True).fallocate(fd, PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(size)) < 0:
                raise OSError(ctypes.get_errno(), "fallocate")
            for page, reference in {**row.durable, **leaked}.items():
                os.pwrite(fd, self.trace.page(reference), page * crash.PAGE)
        finally:
            os.close(fd)
        event = self.trace.events[row.index]
        return {"told": row.told_to, "image": row.image, "variant": variant, "leaked": len(leaked),
                "after": f"{event.type}{event.number}"}


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
