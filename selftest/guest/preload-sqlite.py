#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes a database as an application would, and says what is in it in the end.

usage: preload-sqlite.py DATABASE wal|delete TRANSACTIONS [retry]

Each transaction adds a row that says its number. With "retry" one that fails is tried again on a new connection, and
what was committed before must be there.
"""

import hashlib
import sqlite3
import sys
import time


def connect(path, mode):
    db = sqlite3.connect(path, isolation_level=None, timeout=60)
    db.execute("PRAGMA mmap_size=16777216")
    assert db.execute(f"PRAGMA journal_mode={mode}").fetchone()[0] == mode
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE IF NOT EXISTS t (number INTEGER PRIMARY KEY, text)")
    return db


def write(db, number):
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (number, f"row {number} " * 20))
    db.execute("COMMIT")


def main():
    path, mode, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
    retry, failures, db, number = "retry" in sys.argv, 0, None, 0
    while number < n:
        try:
            db = db or connect(path, mode)
            assert db.execute("SELECT count(*) FROM t").fetchone()[0] >= number
            write(db, number)
            number += 1
            print(number, flush=True)
        except sqlite3.OperationalError as error:
            failures += 1
            print(f"failed: {error}", flush=True)
            if not retry or failures > 1000:
                return 1
            db = db and db.close()
            time.sleep(0.01)
    check = db.execute("PRAGMA integrity_check").fetchone()[0]
    text = repr(db.execute("SELECT * FROM t ORDER BY number").fetchall())
    print(f"{failures} failed, integrity {check}, {n} rows, {hashlib.sha256(text.encode()).hexdigest()}")
    return 0 if check == "ok" else 1


sys.exit(main())
