# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's end of pmem-agent-host(7), written from that page: what speaks it, and checks that an agent conforms.

`Host` needs a transport: send(bytes), and lines(seconds), which yields those that have come, and ends after that time
without one.
"""

import itertools
import json
import socket
import time

ANSWER_SEC = 20
REGION_MEMBERS = {
    "region": str, "size": int, "kind": str, "asynchronous": bool, "method": str, "evidence": list,
    "attestation": str, "served": bool, "confirm": bool, "state": str, "epoch": int, "durable-usec": int,
    "flushing-since-usec": int, "acknowledged": int, "loss": int,
}
GREETING_MEMBERS = {
    "version": str, "protocol": int, "features": list, "boot-id": str, "instance": str, "basis": str,
    "sequence": int, "missed": int, "regions": list,
}


class SocketTransport:
    """A connection of the socket that stands for the port."""

    def __init__(self, connection):
        self.connection = connection
        self.buffer = b""

    def send(self, data):
        self.connection.sendall(data)

    def lines(self, seconds):
        end = time.monotonic() + seconds
        while True:
            while b"\n" in self.buffer:
                line, self.buffer = self.buffer.split(b"\n", 1)
                yield line
                end = time.monotonic() + seconds
            left = end - time.monotonic()
            if left <= 0:
                return
            self.connection.settimeout(left)
            try:
                data = self.connection.recv(65536)
            except socket.timeout:
                return
            if not data:
                raise ConnectionError("the agent has left")
            self.buffer += data

    def close(self):
        self.connection.close()


class Refused(Exception):
    """An answer with "error"."""

    def __init__(self, error):
        super().__init__(f"{error['class']}: {error['desc']}")
        self.name = error["class"]


class Host:
    """Commands go out, messages are kept in their order; `on_wanted` is called for each FLUSH_WANTED."""

    ids = itertools.count(1)

    def __init__(self, transport):
        self.transport = transport
        self.messages = []
        self.on_wanted = None

    def send(self, message):
        self.transport.send(json.dumps(message).encode() + b"\n")

    def command(self, name, id=None, **arguments):
        """Sends it; its id."""
        id = f"c{next(self.ids)}" if id is None else id
        message = {"execute": name, "id": id}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.send(message)
        return id

    def pump(self, seconds):
        """What comes; ends after so long without anything."""
        for line in self.transport.lines(seconds):
            message = json.loads(line.lstrip(b"\xff"))
            self.messages.append(message)
            if self.on_wanted and message.get("event") == "FLUSH_WANTED":
                self.on_wanted(message["data"])
            yield message

    def wait(self, matches, seconds=ANSWER_SEC, since=0):
        """The first message, of those from number `since` on, that matches; None if none comes."""
        for message in self.messages[since:]:
            if matches(message):
                return message
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for message in self.pump(min(1, max(0.01, end - time.monotonic()))):
                if matches(message):
                    return message
                if time.monotonic() > end:  # though others go on coming
                    return None
        return None

    def answer(self, id, seconds=ANSWER_SEC, since=0):
        message = self.wait(lambda m: m.get("id") == id and ("return" in m or "error" in m), seconds, since)
        if message is None:
            raise TimeoutError(f"no answer to {id}")
        if "error" in message:
            raise Refused(message["error"])
        return message["return"]

    def ask(self, name, **arguments):
        since = self.mark()
        return self.answer(self.command(name, **arguments), since=since)

    def refusal(self, name, **arguments):
        """The class of the error, or None."""
        try:
            self.ask(name, **arguments)
        except Refused as refused:
            return refused.name
        return None

    def event(self, name, since=0, seconds=ANSWER_SEC):
        message = self.wait(lambda m: m.get("event") == name, seconds, since)
        return message and message["data"]

    def greeting(self, since=0, seconds=ANSWER_SEC):
        message = self.wait(lambda m: "pmem-agent" in m, seconds, since)
        return message and message["pmem-agent"]

    def mark(self):
        return len(self.messages)

    def flushed(self, data, errno=0):
        """The host's answer to FLUSH_WANTED."""
        return self.command("flushed", region=data["region"], number=data["number"], errno=errno)

    def serve(self, region, flush=True, confirm=True, errno=0, **backing):
        """Does what a host does that serves, at once and with that result."""
        features = ["serve-flush"] * flush + ["serve-confirm"] * confirm
        self.on_wanted = lambda data: self.flushed(data, errno)
        self.ask("negotiate", protocol=2, features=features)
        return self.ask("set-backing", region=region, served=True, **{"type": "file", "share": True, **backing})


def has_members(o, members):
    """What is missing or of another type."""
    return [name for name, kind in members.items()
            if not isinstance(o.get(name), kind) or (kind is int and isinstance(o[name], bool))]


def check_messages(check, host, greeting, region):
    """Envelope, greeting, resync, errors."""
    check("the greeting comes first, and has what the page says", not has_members(greeting, GREETING_MEMBERS),
          greeting)
    check("each region has what the page says",
          all(not has_members(r, REGION_MEMBERS) for r in greeting["regions"]) and greeting["regions"], greeting)
    check("it is protocol 2", greeting["protocol"] == 2)
    check("query returns the same", set(host.ask("query")) == set(greeting))

    for id in (0, -1.5, True, "text", [1, {"a": "b"}], {"x": [None]}):
        host.command("query", id=id)
        check(f"the id comes back as it is: {json.dumps(id)}",
              host.wait(lambda m, id=id: "return" in m and m.get("id") == id and isinstance(m["id"], type(id))))
    check("an unknown command is refused", host.refusal("no-such-command") == "CommandNotFound")
    for name, arguments in (("query", {"x": 1}), ("flush", {"region": 1}), ("flush", {"region": region, "path": "/"}),
                            ("flush", {"region": region, "timeout_usec": 0}),
                            ("flush", {"timeout_usec": 86400000001}), ("flush", {"timeout_usec": -1}),
                            ("flush", {"timeout_usec": 1.5}), ("flush", {"address": -1}), ("flush", {"retry": 1}),
                            ("flush", {"uuid": "1" * 37}), ("acknowledge", {"region": region}),
                            ("acknowledge", {"loss": 1}), ("acknowledge", {"region": region, "loss": -1}),
                            ("set-backing", {"region": region}), ("set-backing", {"region": region, "type": "tape"}),
                            ("set-backing", {"region": region, "type": "file", "share": "on"}),
                            ("set-backing", {"region": region, "type": "file", "unheard": True}),
                            ("flushed", {"region": region, "number": 1}),
                            ("flushed", {"region": region, "number": 1, "errno": 4096}),
                            ("flushed", {"region": region, "number": 1, "errno": 0, "desc": "x" * 129}),
                            ("negotiate", {"protocol": 0}), ("negotiate", {"features": ["x"] * 17}),
                            ("negotiate", {"features": [1]}), ("new-instance", {"x": 1})):
        check(f"wrong arguments are refused: {name} {json.dumps(arguments)[:60]}",
              host.refusal(name, **arguments) == "GenericError")
    for name, arguments in (("flush", {"region": "nowhere"}), ("flush", {"address": 4095}), ("flush", {"address": 2**64 - 1}),
                            ("acknowledge", {"region": "nowhere", "loss": 1}),
                            ("set-backing", {"address": 2**63 + 4096, "type": "file"}),
                            ("flushed", {"address": 4095, "number": 1, "errno": 5}),
                            ("flush", {"path": "/no/such/mount"}), ("flush", {"uuid": "0" * 36}),
                            # Wherever it cuts them: its answer is in UTF-8.
                            ("flush", {"path": "/" + "\u00e9" * 100}), ("flush", {"path": "//" + "\u00e9" * 100})):
        check(f"what isn't there is not found: {name} {json.dumps(arguments)[:60]}",
              host.refusal(name, **arguments) == "NotFound")

    for what, line in (("no JSON", b"nonsense"), ("no object", b"[1]"), ("no command", b'{"id":1}'),
                       ("two commands", b'{"execute":"query"}{"execute":"query"}'),
                       ("single quotes", b"{'execute':'query'}"), ("no UTF-8", b'{"execute":"query","id":"\xfe"}'),
                       ("a command that is a number", b'{"execute":1}'),
                       ("arguments that are an array", b'{"execute":"query","arguments":[]}'),
                       ("JSON nested 17 deep", b'{"execute":"query","id":' + b"[" * 17 + b"]" * 17 + b"}"),
                       ("an id of 257 bytes", b'{"execute":"query","id":"' + b"x" * 255 + b'"}'),
                       ("a line of 65537 bytes", b'{"execute":"query","id":"' + b" " * 65511 + b'"}')):
        since = host.mark()
        host.transport.send(line + b"\n")
        message = host.wait(lambda m: "error" in m, since=since)
        check(f"refused: {what}", message and message["error"]["class"] == "GenericError", message)
    since = host.mark()
    host.transport.send(b'{"execute":"query",\xff{"execute":"query","id":"whole"}\n')
    check("0xFF makes it forget the line and greet, in the same instance",
          (host.greeting(since) or {}).get("instance") == greeting["instance"])
    check("and the next line is understood", host.answer("whole", since=since))
    host.transport.send(b'\n \r\n{"execute" : "query", "id":"spaced"} \r\n')
    check("so is one with space around it", host.answer("spaced"))


def epoch_of(host, region):
    return next(r["epoch"] for r in host.ask("query")["regions"] if r["region"] == region)


def check_flush(check, host, region, everything=True):
    """The command flush, its events, and that a retry makes no other flush. Not everything: not all can be flushed."""
    since = host.mark()
    first = host.ask("flush", region=region)
    check("a flush returns what took part, scope, basis and time",
          not has_members(first, {"regions": list, "scope": str, "basis": str, "durable-usec": int})
          and first["regions"][0]["region"] == region, first)
    durable = host.event("DURABLE", since)
    check("DURABLE tells region, scope, target, epoch, time and basis",
          durable and not has_members(durable, {"region": str, "scope": str, "target": str, "epoch": int,
                                                "durable-usec": int, "basis": str, "sequence": int})
          and durable["epoch"] == first["regions"][0]["epoch"], durable)
    if everything:
        check("a flush of all takes part too", any(r["region"] == region for r in host.ask("flush")["regions"]))
    else:
        check("a flush of all is that of none if one can't be", host.refusal("flush") == "Impossible")
    check("with a deadline as well", host.ask("flush", region=region, timeout_usec=60000000))

    id = host.command("flush", id={"my": "flush"}, region=region)
    answer = host.answer(id)
    before = epoch_of(host, region)
    since = host.mark()
    host.command("flush", id=id, region=region, retry=True)
    again = host.answer(id, since=since)
    check("a retry is answered as before, and says so", again == {**answer, "repeated": True}, again)
    check("and has made no other flush", epoch_of(host, region) == before)
    check("a retry with other arguments is refused",
          host.refusal("flush", id=id, region=region, timeout_usec=5000000, retry=True) == "GenericError")
    check("a retry of what was never given is a flush", "repeated" not in host.ask("flush", region=region, retry=True))
    check("a retry without an id is refused", (host.send({"execute": "flush", "arguments": {"retry": True}}),
                                               host.wait(lambda m: "error" in m and "id" not in m,
                                                         since=host.mark()))[1])
    since = host.mark()
    host.command("flush", id=id, region=region)
    check("the same id without retry is another flush", "repeated" not in host.answer(id, since=since)
          and epoch_of(host, region) > before)

    before = epoch_of(host, region)
    since = host.mark()
    for retry in (False, True, True):
        host.command("flush", id="thrice", region=region, **({"retry": True} if retry else {}))
    host.answer("thrice", since=since)
    list(host.pump(0.3))
    n = sum(m.get("id") == "thrice" for m in host.messages[since:])
    check(f"given thrice, it is made once ({n} answers)", epoch_of(host, region) == before + 1 and 1 <= n <= 3)
    numbers = [m["data"]["sequence"] for m in host.messages if "event" in m]
    check("events are numbered one by one", numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers)


def check_backing(check, host, region):
    """set-backing, and that what the host says goes before what the kernel claims."""
    check("unattested at first", all(r["attestation"] == "unattested" for r in host.ask("query")["regions"]))
    said = host.ask("set-backing", region=region, type="file", share=True, pmem=False, read_only=False)
    check("a file that is shared is attested", said["attestation"] == "attested" and not said["served"], said)
    check("what is not known of sharing attests nothing",
          host.ask("set-backing", region=region, type="file")["attestation"] == "unattested")
    for what, backing in (("RAM", {"type": "ram", "share": True}), ("share=off", {"type": "file", "share": False}),
                          ("read-only", {"type": "file", "share": True, "read_only": True})):
        since = host.mark()
        said = host.ask("set-backing", region=region, **backing)
        check(f"{what} is refused", (said["attestation"], said["method"]) == ("refused", "impossible"), said)
        check(f"{what}: the region goes and comes as another",
              host.event("REGION_REMOVED", since) and host.event("REGION_ADDED", since))
        check(f"{what}: a flush is impossible", host.refusal("flush", region=region) == "Impossible")
        check(f"{what}: an error of the host's is not taken, since it can't be counted",
              host.refusal("flushed", region=region, number=0, errno=5) == "NotFound")
        host.ask("set-backing", region=region, type="file", share=True)
        check(f"{what}: until the host says otherwise", host.ask("flush", region=region))
    host.ask("set-backing", region=region, type="ram")
    since = host.mark()
    host.transport.send(b"\xff")
    host.greeting(since)
    check("a refusal stands after 0xFF", host.refusal("flush", region=region) == "Impossible")
    host.ask("set-backing", region=region, type="file", share=True)
    host.transport.send(b"\xff")
    host.wait(lambda m: "pmem-agent" in m, since=host.mark())
    check("an attestation doesn't", all(r["attestation"] == "unattested" for r in host.ask("query")["regions"]))


def check_instance(check, host, region):
    """new-instance voids what was confirmed."""
    host.ask("set-backing", region=region, type="file", share=True)
    host.ask("flush", region=region)
    id = host.command("flush", id="kept", region=region)
    answer = host.answer(id)
    before = host.ask("query")
    since = host.mark()
    instance = host.ask("new-instance")["instance"]
    event = host.event("NEW_INSTANCE", since)
    check("NEW_INSTANCE is event 1 of it", event and (event["instance"], event["sequence"]) == (instance, 1), event)
    after = host.ask("query")
    check("the instance is another", instance != before["instance"] and after["instance"] == instance)
    mine = next(r for r in after["regions"] if r["region"] == region)
    check("nothing is durable in it yet", mine["durable-usec"] == 0 and mine["attestation"] == "unattested", mine)
    since = host.mark()
    host.command("flush", id=id, region=region, retry=True)
    again = host.answer(id, since=since)
    check("an id of the instance before is unknown: it is a flush", "repeated" not in again
          and again["regions"][0]["epoch"] > answer["regions"][0]["epoch"], again)


def check_confirm(check, host, region):
    """Confirm=host: durable only when the host has said so."""
    host.on_wanted = None
    check("without a host that confirms, nobody can tell", host.refusal("flush", region=region) == "Unknown")
    host.serve(region, errno=0)
    answer = host.ask("flush", region=region)
    check("confirmed by the host", answer["basis"] == "host-confirmed", answer)

    host.on_wanted = lambda data: host.flushed(data, 95)
    check("a host that hasn't flushed: unknown", host.refusal("flush", region=region) == "Unknown")

    # One of another number doesn't count, except for an error.
    host.on_wanted = None
    since = host.mark()
    id = host.command("flush", region=region)
    wanted = host.event("FLUSH_WANTED", since)
    check("FLUSH_WANTED has region, number and purpose",
          wanted and wanted["purpose"] == "confirm" and wanted["region"] == region and wanted["number"] > 0, wanted)
    check("a number that it doesn't wait for confirms nothing",
          host.ask("flushed", region=region, number=wanted["number"] + 1, errno=0) == {"current": False}
          and host.ask("flushed", region=region, number=0, errno=0) == {"current": False})
    list(host.pump(0.3))
    check("the flush still waits", not any(m.get("id") == id for m in host.messages))
    check("its own number does", host.ask("flushed", region=region, number=wanted["number"], errno=0)
          == {"current": True} and host.answer(id)["basis"] == "host-confirmed")
    check("but only once", host.ask("flushed", region=region, number=wanted["number"], errno=0) == {"current": False})

    # One round waits for the host; all that come meanwhile share the next.
    since = host.mark()
    ids = [host.command("flush", region=region) for _ in range(20)]
    host.event("FLUSH_WANTED", since)
    list(host.pump(0.3))
    host.on_wanted = host.flushed
    first = next(m for m in host.messages[since:] if m.get("event") == "FLUSH_WANTED")
    host.flushed(first["data"])
    for id in ids:
        host.answer(id)
    n = sum(m.get("event") == "FLUSH_WANTED" for m in host.messages[since:])
    check(f"20 flushes ask the host {n} times", 1 <= n <= 3)


def loss_of(host, region):
    return next(r["loss"] for r in host.ask("query")["regions"] if r["region"] == region)


def check_loss(check, host, region):
    """An error of the host's own flush is a loss, until it is acknowledged by its number."""
    since = host.mark()
    host.on_wanted = lambda data: host.flushed(data, 5)
    check("an error of the host's is a loss", host.refusal("flush", region=region) == "Lost")
    lost = host.event("LOST", since)
    check("LOST tells number, error and origin", lost and (lost["errno"], lost["error"], lost["origin"])
          == (5, "EIO", "host") and lost["loss"] > 0, lost)
    host.on_wanted = host.flushed
    check("it stays lost though the next would succeed", host.refusal("flush", region=region) == "Lost")
    number = loss_of(host, region)
    check("another number acknowledges nothing",
          host.refusal("acknowledge", region=region, loss=number + 1) == "StaleLoss"
          and host.refusal("acknowledge", region=region, loss=number - 1) == "StaleLoss")
    since = host.mark()
    check("its own does", host.ask("acknowledge", region=region, loss=number) == {"acknowledged": number})
    check("ACKNOWLEDGED tells it", (host.event("ACKNOWLEDGED", since) or {}).get("loss") == number)
    check("again, it is the same", host.ask("acknowledge", region=region, loss=number) == {"acknowledged": number})
    check("and the region can be flushed", host.ask("flush", region=region))

    # What the host could not deliver before counts whenever it comes.
    check("a late error is told to be late", host.ask("flushed", region=region, number=0, errno=28)
          == {"current": False})
    check("and is a loss", loss_of(host, region) == number + 1 and host.refusal("flush", region=region) == "Lost")
    check("the acknowledgement of the one before is stale",
          host.refusal("acknowledge", region=region, loss=number) == "StaleLoss")
    host.ask("acknowledge", region=region, loss=number + 1)
    check("made good", host.ask("flush", region=region))
