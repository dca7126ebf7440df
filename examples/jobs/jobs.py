"""A job runner: each job runs at least once, and its result is kept."""

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from novasvc import Manager, RequestContext, rpc

Id = Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,64}$")]
"""A job's id, which its caller chooses. It becomes the name of a file, so other characters are refused."""


@dataclass
class Result:
    """The result of a job.

    :param status: the program's exit status.
    :param worker: the number of the worker that ran it; 0 without workers.
    """

    status: int
    output: str
    worker: int


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

    @rpc.expose(idempotent=True, blocking=True, expected=(LookupError,))
    def run(self, context: RequestContext, id: Id, program: str) -> Result:  # noqa: A002 - the callers' word
        """Run a program, unless the job has a result already. Runs in a thread.

        :raises LookupError: there is no such program.
        """
        if program not in self._programs:
            raise LookupError(f"no program {program!r}; there are: {', '.join(self._programs)}")
        done = self._read(id)
        if done is not None:
            return done
        (self._folder / f"{id}.pid").write_text(str(os.getpid()))
        ran = subprocess.run(self._programs[program], capture_output=True, text=True, check=False)  # noqa: S603 - from the settings
        result = Result(ran.returncode, ran.stdout, self.attachments.worker or 0)
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
