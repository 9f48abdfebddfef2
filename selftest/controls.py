#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Agents that are broken in one way each, which a test must catch: built beside the whole one.

usage: controls.py BUILD_DIR DIRECTORY NAME...
"""

import os
import shlex
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
MODULES = ["libsystemd", "libndctl", "libdaxctl", "mount", "smartcols", "json-c", "inih"]

# Other programs' errors are not looked for: else the agent's second line would catch what its first one lets through.
BLIND = ("watch.c", "while ((r = witness_next(m->witness, &entry)) > 0)",
         "while ((r = witness_next(m->witness, &entry)) > 0 && false)")

# name: (file, text in it, what stands there instead)...
CONTROLS = {
    "no-flush": [("worker.c", "return (region->attribute ? write(fd, \"1\\n\", 2) : fsync(fd)) < 0 ? errno : 0;", "return 0;")],
    "answer-at-arrival": [
        ("flush.c", "\tplan_finish(p);\n", "\tplan_finish(p);\n\tanswer_list(f, &f->joined, PMEM_AGENT_DURABLE, 0);\n")],
    "late-join": [
        ("flush.c", "TAILQ_INSERT_TAIL(&f->waiting, w, entry);\n\tw->client",
         "w->member = f->plan.n_members - 1;\n"
         "\tif (f->state == FLUSH_IN_FLIGHT && !f->adopted)\n"
         "\t\tTAILQ_INSERT_TAIL(&f->joined, w, entry);\n\telse\n"
         "\t\tTAILQ_INSERT_TAIL(&f->waiting, w, entry);\n\tw->client")],
    "retry-after-error": [
        ("flush.c", "flush_lose(f, lost ? lost->error : unheard, origin, now.realtime);", "TAILQ_CONCAT(&f->waiting, &f->joined, entry);"),
        BLIND],
    "stolen-unnoticed": [BLIND],
    # It has no eye for the worker of the agent before it, nor for what that writes; so its socket's clients, who read the
    # page too, are not fooled, and those of D-Bus are.
    "second-flush": [
        ("round-join.c", "\t/* A failure that the worker has written of is one, whatever it hangs in now. */\n",
         "\treturn 0;\n"), BLIND],
    "datasync-for-sync": [("worker.c", "return fsync(fd) < 0 ? errno : 0;\n\tcase FLUSH_FILE_DATA:",
                           "return fdatasync(fd) < 0 ? errno : 0;\n\tcase FLUSH_FILE_DATA:")],
    "late-success": [
        ("flush.c", "\tif (n > 0)\n\t\tgather(f, n, now);",
         "\tif (n > 0)\n\t\tanswer_list(f, &f->waiting, PMEM_AGENT_DURABLE, 0);\n\tif (n > 0)\n\t\tgather(f, n, now);")],
    # Of those that wait a round takes the first few.
    "small-rounds": [("flush.c", "if (!plan_add(", "if (p->n_members >= 16 || !plan_add(")],
    "shutdown-unseen": [("worker.c", "if (fgetxattr(fd, \"security.pmem-agent\", NULL, 0) >= 0 || errno == ENODATA)", "")],
}


def build(name, build_dir, directory):
    """The path of that agent. ValueError: an edit no longer applies, or it does not compile."""
    texts = {}
    for source, old, new in CONTROLS[name]:
        if source not in texts:
            with open(os.path.join(TOP, "agent", source), encoding="utf-8") as f:
                texts[source] = f.read()
        if texts[source].count(old) != 1:
            raise ValueError(f"{name}: the edit of {source} no longer applies: {old!r}")
        texts[source] = texts[source].replace(old, new)
    sources = []
    for source, text in texts.items():
        sources.append(os.path.join(directory, f"{name}-{source}"))
        with open(sources[-1], "w", encoding="utf-8") as f:
            f.write(text)
    program = os.path.join(directory, name)
    words = shlex.split(os.environ.get("CC", "cc")) + ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-w", "-DPMEM_AGENT_VERSION=\"0\"",
                                                      "-I" + TOP, "-I" + os.path.join(TOP, "agent"), "-o", program]
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", *MODULES], stdout=subprocess.PIPE, text=True, check=True)
    # What is compiled here comes before the library, which has the whole ones.
    done = subprocess.run([*words, *sources, os.path.join(build_dir, "agent", "main.o"),
                           os.path.join(build_dir, "libagent.a"), *flags.stdout.split()], stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise ValueError(f"{name}: {done.stderr.strip().splitlines()[:3]}")
    return program


if __name__ == "__main__":
    os.makedirs(sys.argv[2], exist_ok=True)
    for wanted in sys.argv[3:]:
        build(wanted, *sys.argv[1:3])
