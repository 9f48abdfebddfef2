# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether what clients were told is true, by the log of the host's flushes.

A durable answer needs a flush of the host that began after the request and ended well before the answer. Of a region
that is lost only a flush counts that came before the one that failed.

The guest's clock has been set from the host's (`vm set-clock`), which is good to a few milliseconds, and to more on a
busy machine. So where answers look like lies, they are held against the flushes with the one clock set otherwise: if
that explains all of them at once, to the millisecond, it was the clock.
"""

import bisect
import json

TOLERANCE = 4000      # microseconds, of the clock as it is set
FINE = 1000           # of the clock set otherwise,
MAX_OFFSET = 20000    # by so much at most


def read_flushes(text):
    """(number, begun, ended, went well) of each flush of the host, by number."""
    rows = []
    for line in text.splitlines():
        row = json.loads(line)
        begun = row["time"] * 1e6
        rows.append((row["number"], begun, begun + row["duration_us"], row["result"] == 0))
    return sorted(rows)


def read_answers(f):
    """(begun, ended, answer, epoch, before) of each request that load-sock has written of since the last time."""
    text = f.read()
    whole = text.rfind(b"\n") + 1
    f.seek(whole - len(text), 1)
    rows = [line.split() for line in text[:whole].decode("ascii").splitlines()]
    return [(int(begun), int(ended), answer, int(epoch), int(before)) for begun, ended, answer, epoch, before in rows]


def find_lies(answers, flushes, before=None):
    """Durable answers that no flush of the host stands for; `before`: the number of the flush that lost the region."""
    good = sorted((begun, ended) for number, begun, ended, well in flushes
                  if well and (before is None or number < before))
    begins = [begun for begun, _ in good]
    # The earliest end of any good flush that began at or after this one.
    earliest = [ended for _, ended in good]
    for i in reversed(range(len(good) - 1)):
        earliest[i] = min(earliest[i], earliest[i + 1])
    durable = [row for row in answers if row[2] == "durable"]

    def is_lie(row, offset, tolerance):
        i = bisect.bisect_left(begins, row[0] + offset - tolerance)
        return i == len(good) or earliest[i] > row[1] + offset + tolerance

    lies = [row for row in durable if is_lie(row, 0, TOLERANCE)]
    if lies:
        for offset in range(-MAX_OFFSET, MAX_OFFSET + 1, FINE):
            if not any(is_lie(row, offset, FINE) for row in durable):
                return []
    return lies
