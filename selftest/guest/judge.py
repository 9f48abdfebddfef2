# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether what clients were told is true, by the log of the host's flushes.

A durable answer needs a flush of the host that began after the request and ended well before the answer. Of a region
that is lost only a flush counts that came before the one that failed.

The guest's clock has been set from the host's (`vm set-clock`), which is good to a few milliseconds; so flushes are
made to last some ten times as long where it matters.
"""

import bisect
import json

TOLERANCE = 4000  # microseconds


def read_flushes(text):
    """(number, begun, ended, went well) of each flush of the host, by number."""
    rows = []
    for line in text.splitlines():
        row = json.loads(line)
        begun = row["time"] * 1e6
        rows.append((row["number"], begun, begun + row["duration_us"], row["result"] == 0))
    return sorted(rows)


def read_answers(path):
    """(begun, ended, answer, epoch) of each request."""
    with open(path, encoding="ascii") as f:
        rows = [line.split() for line in f]
    return [(int(b), int(e), answer, int(epoch)) for b, e, answer, epoch in rows]


def find_lies(answers, flushes, before=None):
    """Durable answers that no flush of the host stands for; `before`: the number of the flush that lost the region."""
    good = sorted((begun, ended) for number, begun, ended, well in flushes
                  if well and (before is None or number < before))
    begins = [begun for begun, _ in good]
    # The earliest end of any good flush that began at or after this one.
    earliest = [0.0] * len(good)
    for i in reversed(range(len(good))):
        earliest[i] = min(good[i][1], earliest[i + 1]) if i + 1 < len(good) else good[i][1]
    lies = []
    for row in answers:
        if row[2] != "durable":
            continue
        i = bisect.bisect_left(begins, row[0] - TOLERANCE)
        if i == len(good) or earliest[i] > row[1] + TOLERANCE:
            lies.append(row)
    return lies
