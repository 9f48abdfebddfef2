# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `vm` in the guest and `ctl` on the host can ask for: one table, one function a row."""

import asyncio
import base64
import binascii
import contextlib
import json
import re
import time
import traceback
from collections import namedtuple
from functools import partial

from util import VmError

Verb = namedtuple("Verb", "words usage help function")
VERBS = []


class Usage(Exception):
    """The words of a request don't fit the verb."""


class Status(Exception):
    """What a program of the host ended with, and printed."""


class NoAnswer(Exception):
    """Done, and the guest that asked must not go on: it is being taken down."""


def verb(words, usage, text):
    def add(function):
        VERBS.append(Verb(words.split(), usage, text, function))
        return function
    return add


def number(text, what="a number", least=0):
    if not re.fullmatch(r"[0-9]+", text) or int(text) < least:
        raise Usage(f"'{text}' is not {what}")
    return int(text)


def seconds(text):
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        raise Usage(f"'{text}' is not a number of seconds")
    return float(text)


def options(words, **known):
    """Take `--name VALUE` out of @words; returns what remains and the values."""
    rest, values = [], {name: default for name, (default, _) in known.items()}
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            rest.append(word)
            continue
        if word[2:] not in known:
            raise Usage(f"'{word}' is not known here")
        if not words:
            raise Usage(f"'{word}' wants a value")
        values[word[2:]] = known[word[2:]][1](words.pop(0))
    return rest, values


def flushing(session, words):
    """The regions meant by an optional last word."""
    if len(words) > 1:
        raise Usage(f"'{words[1]}' is one word too many")
    chosen = [session.region(words[0])] if words else session.regions
    chosen = [r.id for r in chosen]
    if not chosen:
        raise VmError("the machine has no region")
    return chosen


def failures(text):
    if text not in ("every", "off"):
        for word in text.split(","):
            number(word, "a number from 1, several with commas, 'every' or 'off'", 1)
    return text


@verb("fsync delay", "USEC [REGION]", "every host flush takes that much longer, one after the other")
async def fsync_delay(session, words):
    if not words:
        raise Usage("how long?")
    for region in flushing(session, words[1:]):
        await session.faults.set_delay(region, number(words[0], "a number of microseconds"))


@verb("fsync fail", "N[,M...]|every|off [REGION]", "the Nth host flush from now fails with EIO")
async def fsync_fail(session, words):
    if not words:
        raise Usage("which one?")
    for region in flushing(session, words[1:]):
        await session.faults.send("fail", region, failures(words[0]))


@verb("fsync hang", "N|off [REGION]", "the Nth host flush from now hangs until released")
async def fsync_hang(session, words):
    if not words:
        raise Usage("which one?")
    which = "0" if words[0] == "off" else str(number(words[0], "a number from 1", 1))
    for region in flushing(session, words[1:]):
        await session.faults.send("hang", region, which)


@verb("fsync release", "[fail] [REGION]", "let the hung flushes go on, or fail with EIO")
async def fsync_release(session, words):
    how = "ok"
    if words and words[0] == "fail":
        how, words = "fail", words[1:]
    chosen = flushing(session, words)
    if not words:
        chosen = [r for r in chosen if (await session.faults.send("count", r))[1]]
        if not chosen:
            raise VmError("no flush hangs")
    for region in chosen:
        await session.faults.release(region, how)


@verb("fsync count", "[REGION]", "host flushes begun so far")
async def fsync_count(session, words):
    counts = [(await session.faults.send("count", r))[0] for r in flushing(session, words)]
    return f"{sum(counts)}\n"


@verb("fsync log", "[REGION]", "the lines of fsync.log: every host flush that has ended")
async def fsync_log(session, words):
    return session.faults.log(flushing(session, words))


@verb("fsync durable", "on|off [REGION]",
      "copy the backing file at each flush, or stop; begins with what is in it (see --durable)")
async def fsync_durable(session, words):
    if not words or words[0] not in ("on", "off"):
        raise Usage("on or off?")
    for region in flushing(session, words[1:]):
        if region not in session.faults.durable:
            if words[0] == "off":
                continue
            session.faults.prepare_durable(region, session.region(region).backing, session.durable_dir)
        await session.faults.set_durable(region, words[0] == "on")


@verb("fsync wait-hung", "[REGION]", "wait until a host flush hangs; prints region and number")
async def fsync_wait_hung(session, words):
    region, which = await session.faults.wait_hung(flushing(session, words))
    return f"{region} {which}\n"


class Served:
    """The session, as the verbs above see it where they are about the flushes of `pmemctl serve`."""

    def __init__(self, session):
        if not session.hostctl.process:
            raise VmError("serve does not run")
        self.regions, self.region, self.faults = session.regions, session.region, session.hostctl.faults


def add_served():
    async def on_serve(function, session, words):
        return await function(Served(session), words)

    for v in [v for v in VERBS if v.words[1] in ("fail", "hang", "release", "count", "delay")]:
        VERBS.append(Verb(["serve", *v.words], v.usage, f"the same of `pmemctl serve`: {v.help}",
                          partial(on_serve, v.function)))


add_served()


@verb("serve fsync wait-hung", "[REGION]", "wait until a flush of `pmemctl serve` hangs; prints the region")
async def serve_wait_hung(session, words):
    return f"{await session.hostctl.wait_hung(flushing(Served(session), words))}\n"


@verb("serve start", "[OPTION...]", "pmemctl serve on the host (with --qmp unless other options say), our reader its client")
async def serve_start(session, words):
    host_end(session)
    await session.hostctl.start(words)


@verb("serve stop", "[terminate|kill]", "the end of it; the reader stays disconnected")
async def serve_stop(session, words):
    await session.hostctl.stop(*words[:1])


@verb("pmemctl", "WORD...", "pmemctl --host on the host, through serve if that runs; ends with its status")
async def host_pmemctl(session, words):
    status, text = await session.hostctl.run(words)
    if status:
        raise Status(status, text)
    return text


def host_end(session):
    if session.host is None:
        raise VmError("this machine has no io.pmem.agent.0 port (--no-port)")
    return session.host


def nothing_more(words):
    if words:
        raise Usage(f"'{words[0]}' is one word too many")


@verb("host lines", "[--since K]", "what the host has received, from line K (0 is the first)")
async def host_lines(session, words):
    rest, given = options(words, since=(0, number))
    nothing_more(rest)
    return "".join(line + "\n" for line in host_end(session).lines[given["since"]:])


@verb("host count", "", "number of lines received so far: the K for --since")
async def host_count(session, words):
    nothing_more(words)
    return f"{len(host_end(session).lines)}\n"


@verb("host wait", "REGEX [--since K] [--timeout S]", "wait for a line that matches; prints it")
async def host_wait(session, words):
    rest, given = options(words, since=(0, number), timeout=(60.0, seconds))
    if len(rest) != 1:
        raise Usage("one regular expression is wanted")
    try:
        line = await host_end(session).wait_for(rest[0], given["since"], given["timeout"])
    except re.error as e:
        raise Usage(f"'{rest[0]}': {e}") from e
    if line is None:
        raise VmError(f"no line like {rest[0]} within {given['timeout']:g} s")
    return line + "\n"


async def send(session, data):
    if not await host_end(session).send(data):
        raise VmError("the host's reader isn't connected")


@verb("host send", "TEXT", "send a line")
async def host_send(session, words):
    if len(words) != 1:
        raise Usage("one text is wanted")
    await send(session, words[0].encode(errors="surrogateescape") + b"\n")


@verb("host ask", "JSON [--times N]", "send a command that has an id; prints microseconds, and its answer")
async def host_ask(session, words):
    rest, given = options(words, times=(1, number))
    try:
        given_id = json.dumps(json.loads(rest[0])["id"])
    except (ValueError, LookupError, TypeError) as e:
        raise Usage("a command with an id is wanted") from e
    text = ""
    for i in range(given["times"]):
        await asyncio.sleep(0.05 if i else 0)
        since, began = len(host_end(session).lines), time.monotonic()
        await send(session, rest[0].encode() + b"\n")
        line = await host_end(session).wait_for(f'"id":{re.escape(given_id)}}}$', since, 60)
        if line is None:
            raise VmError("no answer within 60 s")
        text += f"{round((time.monotonic() - began) * 1e6)} {line}\n"
    return text


@verb("host send-raw", "BASE64", "send these bytes and nothing else")
async def host_send_raw(session, words):
    try:
        data = base64.b64decode("".join(words), validate=True)
    except binascii.Error as e:
        raise Usage(f"not base64: {e}") from e
    await send(session, data)


@verb("host flood", "BYTES", "send that many bytes without an end of line; returns when taken")
async def host_flood(session, words):
    left = number(words[0]) if len(words) == 1 else -1
    if left < 0:
        raise Usage("how many bytes?")
    while left:
        part = min(left, 1 << 16)
        await send(session, b"x" * part)
        left -= part


@verb("host connect", "", "the reader connects")
async def host_connect(session, words):
    nothing_more(words)
    await host_end(session).connect()


@verb("host disconnect", "", "the reader goes away")
async def host_disconnect(session, words):
    nothing_more(words)
    await host_end(session).disconnect()


@verb("host pause", "", "the reader stays connected and reads nothing")
async def host_pause(session, words):
    nothing_more(words)
    host_end(session).pause()


@verb("host resume", "", "the reader reads again")
async def host_resume(session, words):
    nothing_more(words)
    host_end(session).resume()


@verb("regions", "", "id, kind, size, mode, guest-physical address and backing file of each")
async def regions(session, words):
    nothing_more(words)
    return "".join(f"{r.id} {r.kind} {r.size} {r.mode} {r.address:#x} {r.backing}\n"
                   for r in session.regions)


@verb("region add", "KIND:SIZE", "plug in another region; prints its id")
async def region_add(session, words):
    if len(words) != 1:
        raise Usage("KIND:SIZE is wanted, such as virtio-pmem:64M")
    return f"{(await session.plug_region(words[0])).id}\n"


@verb("region address", "REGION", "its guest-physical address")
async def region_address(session, words):
    if len(words) != 1:
        raise Usage("which region?")
    return f"{session.region(words[0]).address:#x}\n"


@verb("region backing", "REGION", "its backing file on the host, and its durable image if any")
async def region_backing(session, words):
    if len(words) != 1:
        raise Usage("which region?")
    region = session.region(words[0])
    durable = session.faults.durable.get(region.id)
    return f"{region.backing}\n" + (f"{durable}\n" if durable else "")


@verb("port remove", "", "unplug io.pmem.agent.0")
async def port_remove(session, words):
    nothing_more(words)
    host_end(session)
    await session.machine.qmp.command("device_del", id="agentport")


@verb("port add", "", "plug io.pmem.agent.0 in again")
async def port_add(session, words):
    nothing_more(words)
    host_end(session)
    await session.machine.qmp.command("device_add", driver="virtserialport", bus="agentserial.0",
                                      nr=1, chardev="agent", name="io.pmem.agent.0", id="agentport")


@verb("qmp", "COMMAND [JSON]", "a command of QEMU's monitor, with these arguments; prints what it returns")
async def qmp(session, words):
    if not 1 <= len(words) <= 2:
        raise Usage("which command?")
    answer = await session.machine.qmp.command(words[0], **json.loads(words[1] if len(words) > 1 else "{}"))
    return json.dumps(answer) + "\n"


@verb("time", "", "the host's clock, in seconds since the epoch")
async def host_time(session, words):
    nothing_more(words)
    return f"{time.time():.6f}\n"


@verb("pause", "SECONDS", "the machine stands still for that long, and doesn't know it")
async def pause(session, words):
    if len(words) != 1:
        raise Usage("for how long?")
    await session.machine.qmp.command("stop")
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(session.off.wait(), seconds(words[0]))
    await session.machine.qmp.command("cont")


@verb("stop", "", "the machine stands still until `ctl cont`")
async def stop(session, words):
    nothing_more(words)
    await session.machine.qmp.command("stop")


@verb("cont", "", "and goes on")
async def cont(session, words):
    nothing_more(words)
    await session.machine.qmp.command("cont")


@verb("restore", "", "the machine is saved into a file and ended; another one goes on from it")
async def restore(session, words):
    nothing_more(words)
    await session.restore()


@verb("wake-after", "SECONDS", "wake the machine that long after it fell asleep (see suspend)")
async def wake_after(session, words):
    if len(words) != 1:
        raise Usage("after how long?")
    session.wake_after = seconds(words[0])


@verb("cut", "", "power is gone; with more scripts to come the machine starts again")
async def cut(session, words):
    nothing_more(words)
    session.cut()
    raise NoAnswer


@verb("reset", "", "the reset button: what was not written is lost")
async def reset(session, words):
    nothing_more(words)
    session.expect_down = True
    await session.machine.qmp.command("system_reset")
    raise NoAnswer


@verb("reboot", "", "an orderly reboot; the next script goes on after it (`systemctl reboot` is the same)")
async def reboot(session, words):
    nothing_more(words)
    session.port.leave("reboot")
    raise NoAnswer


@verb("poweroff", "", "an orderly power-off; with more scripts to come the machine starts again")
async def poweroff(session, words):
    nothing_more(words)
    session.port.leave("poweroff")
    raise NoAnswer


@verb("help", "", "this list")
async def show_help(session, words):
    return help_text()


def help_text():
    rows = [(" ".join(v.words + ([v.usage] if v.usage else [])), v.help) for v in VERBS]
    rows += [("dev REGION", "its device in the guest, such as /dev/pmem0 (guest only)"),
             ("set-clock", "set the guest's clock from the host's, to a few ms (guest only)"),
             ("suspend SECONDS", "suspend to memory, woken after SECONDS (guest only)")]
    return "".join(f"  {left}\n      {right}\n" for left, right in rows)


async def obey(session, words):
    """One request: its status and what to print; status None means that no answer is due."""
    for v in VERBS:
        n = len(v.words)
        if words[:n] != v.words:
            continue
        try:
            return 0, await v.function(session, words[n:]) or ""
        except NoAnswer:
            return None, ""
        except Status as e:
            return e.args
        except Usage as e:
            return 2, f"vm {' '.join(v.words)}: {e}\nusage: vm {' '.join(v.words)} {v.usage}\n"
        except (VmError, OSError) as e:
            return 1, f"vm {' '.join(v.words)}: {e}\n"
        except Exception as e:              # a fault of ours must not leave the caller waiting
            return 1, f"vm {' '.join(v.words)}: {traceback.format_exception_only(e)[-1]}"
    known = sorted({" ".join(v.words) for v in VERBS} | {"dev", "set-clock", "suspend"})
    return 2, f"vm: '{' '.join(words)}' is not known; there are: {', '.join(known)}\n"
