"""A job runner: each job runs at least once, and its result is kept."""

import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IReactorProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from novasvc import Manager, RequestContext, rpc

Id = Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,64}$")]
"""A job's id, which its caller chooses. It becomes the name of a file, so other characters are refused."""


@dataclass
class Result:
    """The result of a job.

    :param status: the program's exit status; None if a signal has ended it.
    :param worker: the number of the worker that ran it; 0 without workers.
    """

    status: int | None
    output: str
    worker: int


class Program(ProcessProtocol):
    """A program that runs. Lines of its output such as "40% copying" are its progress.

    :ivar output: what it has written so far.
    :ivar status: its exit status; None if a signal has ended it.
    """

    def __init__(self, context: RequestContext) -> None:
        self.output = b""
        self.status: int | None = None
        self.ended: Deferred[None] = Deferred(lambda _: self.terminate())
        """Fires when the program has ended; cancelling it terminates the program."""
        self._context = context
        self._line = b""

    def outReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's
        """Keep output, and report progress."""
        self.output += data
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            found = re.match(r"(\d\d?|100)% ?(.*)", line.decode(errors="replace"))
            if found:
                self._context.progress(int(found[1]) / 100, found[2])

    def processEnded(self, reason: Failure) -> None:
        """Keep the exit status."""
        assert isinstance(reason.value, ProcessDone | ProcessTerminated)
        self.status = reason.value.exitCode
        if not self.ended.called:
            self.ended.callback(None)

    def terminate(self) -> None:
        """End the program."""
        assert self.transport is not None  # spawnProcess has connected it
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess("TERM")


class Jobs(Manager):
    """Runs programs.

    :param programs: the command line of each program, by name.
    :param folder: where results are kept.
    """

    def __init__(self, host: str, programs: dict[str, list[str]], folder: str) -> None:
        super().__init__(host)
        self._programs = programs
        self._folder = Path(folder)

    def init_host(self) -> None:
        """Create the folder."""
        self._folder.mkdir(parents=True, exist_ok=True)

    @rpc.expose(idempotent=True, expected=(LookupError,))
    async def run(self, context: RequestContext, id: Id, program: str) -> Result:  # noqa: A002 - the callers' word
        """Run a program, unless the job has a result already. Cancelling the call ends the program.

        :raises LookupError: there is no such program.
        """
        if program not in self._programs:
            raise LookupError(f"no program {program!r}; there are: {', '.join(self._programs)}")
        done = self._read(id)
        if done is not None:
            return done
        (self._folder / f"{id}.pid").write_text(str(os.getpid()))
        running, command = Program(context), self._programs[program]
        IReactorProcess(self.attachments.reactor).spawnProcess(running, command[0], command, env=None)
        await running.ended
        result = Result(running.status, running.output.decode(errors="replace"), self.attachments.worker or 0)
        # Write, then rename: whoever reads the file finds a whole result.
        unfinished = self._folder / f"{id}.{os.getpid()}.new"
        unfinished.write_text(json.dumps(asdict(result)))
        unfinished.rename(self._folder / f"{id}.json")
        return result

    @rpc.expose
    def result(self, context: RequestContext, id: Id) -> Result | None:  # noqa: A002 - the callers' word
        """Return a job's result; None if it has none yet."""
        return self._read(id)

    def _read(self, job: str) -> Result | None:
        path = self._folder / f"{job}.json"
        return Result(**json.loads(path.read_text())) if path.exists() else None
