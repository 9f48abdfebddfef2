# SPDX-License-Identifier: LGPL-2.1-or-later
"""pmemctl on the host: `serve` in the background, whose flushes fail or hang as those of QEMU do, and other verbs."""

import asyncio
import os

from faults import Faults
from util import VmError, dying_with_us


class HostCtl:
    """What the host runs of the agent's own programs."""

    def __init__(self, session, log_dir):
        self.session, self.run_dir = session, session.run_dir
        self.program = os.path.join(os.path.realpath(session.options.build_dir), "pmemctl")
        self.log = os.path.join(log_dir, "serve.log")
        self.faults = Faults(os.path.join(log_dir, "serve-fsync.log"))
        self.process = None

    @property
    def socket(self):
        return os.path.join(self.run_dir, "serve.sock" if self.process else "agent.sock")

    async def start(self, words):
        """serve with these options, or with QEMU's word on the backings; the host's reader is its client then."""
        if self.process:
            raise VmError("serve runs already")
        host = self.session.host
        await host.disconnect()
        environment = {}
        theirs = self.faults.attach(environment, self.session.library)
        theirs.setblocking(True)
        self.faults.durable = self.session.faults.durable
        with open(self.log, "ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                self.program, "--host", "agent.sock", "serve", "--listen", "serve.sock",
                *(words or ["--qmp", "qmp.sock"]), cwd=self.run_dir, stdin=asyncio.subprocess.DEVNULL, stdout=log,
                stderr=log, env={**os.environ, **environment}, pass_fds=[theirs.fileno()],
                preexec_fn=dying_with_us())
        theirs.close()
        for region in self.session.regions:
            await self.faults.add_region(region.id, region.backing)
        host.path = self.socket
        for _ in range(200):
            try:
                return await host.connect()
            except OSError:
                await asyncio.sleep(0.05)
        raise VmError("serve does not listen")

    async def stop(self, how="terminate"):
        if not self.process:
            raise VmError("serve does not run")
        host = self.session.host
        await host.disconnect()
        getattr(self.process, how)()
        status = await self.process.wait()
        self.faults.detach()
        self.process = None
        host.path = self.socket
        return status

    async def run(self, words):
        """One verb: its status, and what it printed."""
        process = await asyncio.create_subprocess_exec(
            self.program, "--host", self.socket, *words, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, preexec_fn=dying_with_us())
        output, _ = await process.communicate()
        return process.returncode, output.decode(errors="replace")

    async def wait_hung(self, regions):
        """The first region of which a flush hangs: serve's children have nobody to tell."""
        while True:
            for region in regions:
                if (await self.faults.send("count", region))[1]:
                    return region
            await asyncio.sleep(0.05)
