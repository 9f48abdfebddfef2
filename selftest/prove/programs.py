#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that know nothing of the agent: SQLite and LMDB with their own recovery, and a shell script with pmemctl flush.

usage: programs.py [verify-]sqlite|lmdb|shell DIRECTORY BOARD PROMISES

The board is that of load-cut: a promise is one word, the number of the row or of the turn.
"""

import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile

BOARD_SIZE = 2 << 20


class Board:
    """Only one writes here, so the next free word is known."""

    def __init__(self, path):
        with open(path, "r+b", buffering=0) as f:
            self.words = memoryview(mmap.mmap(f.fileno(), BOARD_SIZE)).cast("Q")
        self.n = 0

    def note(self, number):
        self.n += 1
        self.words[self.n] = 1 << 63 | number

    def newest(self, n):
        return max((self.words[1 + i] & 0xffffffff for i in range(n)), default=0)


def sqlite(directory, board, n):
    db = sqlite3.connect(os.path.join(directory, "db"), isolation_level=None)
    db.execute("pragma journal_mode=wal")
    db.execute("pragma synchronous=full")
    db.execute("create table t (number integer primary key, text)")
    for i in range(1, n + 1):
        db.execute("insert into t values (?, ?)", (i, f"row {i} " * 40))
        board.note(i)
    print(f"{n} promises")
    # In order it would checkpoint; power is cut before.
    sys.stdout.flush()
    os._exit(0)


LMDB_SIZE = 4 << 20


def text_of(number):
    return f"value {number} ".encode() * 40


def lmdb(directory, board, n):
    """It stores through its mapping, and has that made durable by msync."""
    import lmdb as library
    db = library.open(os.path.join(directory, "lmdb"), map_size=LMDB_SIZE, writemap=True)
    for i in range(1, n + 1):
        with db.begin(write=True) as transaction:
            transaction.put(b"%06d" % i, text_of(i))
        board.note(i)
    print(f"{n} promises")
    sys.stdout.flush()
    os._exit(0)


def verify_lmdb(directory, board, n):
    import lmdb as library
    newest, values, wrong = board.newest(n), {}, ""
    with tempfile.TemporaryDirectory() as copy:
        if newest:
            shutil.copy(os.path.join(directory, "lmdb", "data.mdb"), copy)
        try:
            with library.open(copy, map_size=LMDB_SIZE) as db, db.begin() as transaction:
                values = {int(key): bytes(value) for key, value in transaction.cursor()}
        except library.Error as e:
            wrong = str(e)
    missing = [i for i in range(1, newest + 1) if values.get(i) != text_of(i)]
    broken = [i for i, value in values.items() if value != text_of(i)]
    if wrong or missing or broken:
        print(f"{wrong}; values {missing[:10]} of {newest} are gone, {broken[:10]} are broken")
    return bool(wrong or missing or broken)


def verify_sqlite(directory, board, n):
    newest = board.newest(n)
    with tempfile.TemporaryDirectory() as copy:
        for name in os.listdir(directory):
            if name.startswith("db"):
                shutil.copy(os.path.join(directory, name), copy)
        db = sqlite3.connect(os.path.join(copy, "db"))
        whole = db.execute("pragma integrity_check").fetchone()[0]
        rows = set()
        if newest:
            rows = {number for number, text in db.execute("select number, text from t") if text == f"row {number} " * 40}
    missing = [i for i in range(1, newest + 1) if i not in rows]
    if whole != "ok" or missing:
        print(f"integrity: {whole}; rows {missing[:10]} of {newest} are gone")
    return whole != "ok" or bool(missing)


SCRIPT = """
cd "$1" || exit 1
echo "turn $2" >new && pmemctl flush new >/dev/null && mv new "turn-$2" || exit 1
if [ $(($2 % 2)) = 0 ]; then pmemctl flush "$1" >/dev/null; else pmemctl flush --scope=file "$1" >/dev/null; fi
"""


def shell(directory, board, n):
    for i in range(1, n + 1):
        if subprocess.run(["sh", "-c", SCRIPT, "sh", directory, str(i)], check=False).returncode == 0:
            board.note(i)
    print(f"{board.n} promises")
    return board.n == 0


def verify_shell(directory, board, n):
    wrong = []
    for i in range(n):
        number = board.words[1 + i] & 0xffffffff
        try:
            with open(os.path.join(directory, f"turn-{number}"), encoding="ascii") as f:
                text = f.read()
        except OSError as e:
            text = str(e)
        if text != f"turn {number}\n":
            wrong.append(f"{number}: {text!r}")
    if wrong:
        print("\n".join(wrong[:5]))
    return bool(wrong)


def main():
    _, what, directory, board, n = sys.argv
    functions = {"sqlite": sqlite, "lmdb": lmdb, "shell": shell, "verify-sqlite": verify_sqlite,
                 "verify-lmdb": verify_lmdb, "verify-shell": verify_shell}
    return functions[what](directory, Board(board), int(n))


if __name__ == "__main__":
    sys.exit(main())
