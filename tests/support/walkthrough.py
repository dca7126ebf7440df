"""Runs a page of documentation as a reader would: saves its files, runs its commands, compares what they print."""

import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from unittest import TestCase

import attrs

from tests.e2e.process import Process

STARTS = re.compile(r"(\w+=\S+ )*(twistd -n|novasvc run |python (sensors|serve_\w+)\.py)")
"""Commands that go on until they are stopped."""
_RUNS = r"is running|are served"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ANY = re.compile(r"(\\ )*\\\.\\\.\\\.(\\ )*")
"""Three dots with the spaces around them, as re.escape writes them."""
_FILE = re.compile(r"# (\S+\.(?:py|toml|ini|tac))\n")


@attrs.frozen
class Command:
    """A command of a console block, and the output that the page shows for it.

    :param shown: lines; none if the page shows no output. "..." stands for any text within a line, or, alone, for any
        lines.
    """

    line: str
    shown: tuple[str, ...]


def commands(block: str) -> Iterator[Command]:
    """Yield the commands of a console block."""
    for part in re.split(r"^\$ ", block.replace("\\\n", ""), flags=re.MULTILINE)[1:]:
        line, *shown = part.rstrip("\n").split("\n")
        yield Command(line, tuple(shown))


def matches(shown: tuple[str, ...], output: str) -> bool:
    """Return whether an output is what a page shows."""
    lines = (".*" if line == "..." else _ANY.sub("[^\n]*", re.escape(line)) + "\n" for line in shown)
    pattern = "".join(lines)
    return re.fullmatch(pattern, f"{output.rstrip()}\n", re.DOTALL) is not None


class Walkthrough:
    """A reader who follows a page.

    :param test: what the reader started is stopped at its end.
    :param folder: where the reader is; it exists.
    :param settings: environment variables. They win over those that the page exports.
    :param instead: texts in commands, and what to write in their place.
    """

    def __init__(
        self, test: TestCase, folder: Path, settings: Mapping[str, str], instead: Mapping[str, str] | None = None
    ) -> None:
        self.running: dict[str, Process] = {}
        self.ran = 0
        self._test = test
        self._folder = folder
        self._settings = dict(settings)
        self._instead = dict(instead or {})
        self._exported: dict[str, str] = {}

    def follow(self, page: str) -> None:
        """Save each file whose name is its block's first line, and run each command, in the page's order."""
        for language, block in _BLOCK.findall(page):
            named = _FILE.match(block)
            if named is not None:
                self._save(named.group(1), block)
            elif language == "console":
                for command in commands(block):
                    self.run(command)

    def _save(self, name: str, text: str) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.suffix == ".py":
            for line, process in self.running.items():
                if "--reload" in line:
                    process.wait_for("starting again")
                    process.wait_for(_RUNS)

    def run(self, command: Command) -> None:
        """Run one command."""
        self.ran += 1
        line = command.line
        for text, other in self._instead.items():
            line = line.replace(text, other)
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            self._exported[name] = value
        elif STARTS.match(line):
            self._start(line)
        else:
            self._finish(line, command.shown)

    def begin(self, line: str) -> Process:
        """Begin a command, and return its process."""
        bin_folder = str(Path(sys.executable).parent)
        # A reader's shell has no PYTHONPATH, so that a page that needs one has to say so.
        environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"}
        environment["NOVASVC_STATE_DIR"] = str(self._folder / "state")
        environment |= self._exported | self._settings
        process = Process(self._test, ["bash", "-c", line], self._folder, **environment)
        self._test.addCleanup(_kill, process)  # before Process's own clean-up, which knows no children
        return process

    def _start(self, line: str) -> None:
        process = self.begin(line)
        self.running[line] = process
        config = re.search(r"--config (\S+)", line)
        settings = (self._folder / config.group(1)).read_text() if config else ""
        if "workers" in line + settings or "serve_" in line:
            process.wait_for("the supervisor is running")
        else:
            for _ in range(settings.count("[[service]]") or 1):
                process.wait_for(_RUNS)

    def _finish(self, line: str, shown: tuple[str, ...]) -> None:
        process = self.begin(line)
        status = process.wait()
        refused = any(text.startswith("novasvc: ") for text in shown)
        story = f"$ {line}\n{process.output}"
        self._test.assertEqual(status, 1 if refused else 0, story)
        if shown and not matches(shown, process.output):
            others = "\n".join(f"$ {line}\n{other.output}" for line, other in self.running.items())
            self._test.fail("\n".join((story, "The page shows:", *shown, "Running:", others)))

    def stop(self) -> None:
        """Stop what runs, the last one first."""
        for process in reversed(self.running.values()):
            with suppress(ProcessLookupError):
                os.killpg(process.popen.pid, signal.SIGTERM)
            process.wait()
        self.running.clear()


def _kill(process: Process) -> None:
    """Kill a process with its children, if it still runs."""
    with suppress(ProcessLookupError):
        os.killpg(process.popen.pid, signal.SIGKILL)
    process.popen.wait()
