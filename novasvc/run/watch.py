"""Restart a process when the Python files of a directory change; for developing."""

import ctypes
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from novasvc.errors import describe

INTERVAL = 0.5
"""Seconds between two looks at the files."""

FILES = 10_000
"""Most files that are looked at; those beyond are not watched."""

_DRAIN = 10.0
"""Seconds for the process to end by itself before it is killed."""

_INTERRUPTED = 1.0
"""Seconds that the process gets to end after Ctrl-C, which a terminal sends to both processes. A second signal would
kill it while it removes its sockets."""

_SKIPPED = frozenset({"node_modules", "__pycache__", "site-packages", "build", "dist"})

_PR_SET_PDEATHSIG = 1
"""Source: prctl(2)."""


def run_again_when_changed(command: Sequence[str], directory: Path, report: Callable[[str], object]) -> int:
    """Run a command, and run it again whenever a Python file below a directory is changed, added or removed.

    A change that is no valid Python, such as a file saved half-way, is reported, and the command runs on. If the
    command ends by itself, it runs again after the next change.

    :param report: called with how the command has ended by itself, such as "with status 1", and with "" before it runs.
    :return: the exit status of the command that ran when this process got SIGINT or SIGTERM.
    """
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: stopping.append(number))
    while True:
        seen = snapshot(directory)
        report("")
        running = subprocess.Popen(command)  # noqa: S603 - the caller's own command
        changed, ended = None, False
        while not stopping and changed is None:
            time.sleep(INTERVAL)
            if running.poll() is not None and not (ended or stopping):  # Ctrl-C ends both
                ended = True
                _tell(f"it ended {_how(running.returncode)}; it starts again when a file changes")
                report(_how(running.returncode))
            after = snapshot(directory)
            changed = first_change(seen, after)
            wrong = None if changed is None else syntax_error(seen, after)
            if wrong is not None:
                _tell(f"{wrong}; nothing starts again before it is mended")
                seen, changed = after, None
        if changed is not None and not ended:
            _tell(f"{os.path.relpath(changed, directory)} changed, ending the process")
        _end(running, interrupted=signal.SIGINT in stopping)
        if stopping or changed is None:
            return running.returncode if running.returncode >= 0 else 128 - running.returncode
        _tell(f"{os.path.relpath(changed, directory)} changed, starting again")


def end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent ends, even by SIGKILL.

    :param parent: the parent's process id; if it has ended already, the signal is sent now.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def snapshot(directory: Path) -> dict[str, int]:
    """Return the Python files below a directory, with the times of their last changes in nanoseconds."""
    found: dict[str, int] = {}
    for path in _python_files(directory):
        with suppress(OSError):  # an editor may just replace it
            found[path] = os.stat(path).st_mtime_ns  # noqa: PTH116 - ten thousand of them
        if len(found) >= FILES:
            break
    return found


def first_change(before: dict[str, int], after: dict[str, int]) -> str | None:
    """Return a file that differs between two snapshots; None if there is none."""
    return next((path for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)), None)


def syntax_error(before: dict[str, int], after: dict[str, int]) -> str | None:
    """Return the first syntax error in the files that have changed between two snapshots; None if there is none."""
    for path in sorted(path for path, changed in after.items() if before.get(path) != changed):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the command shows them
                compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:  # ValueError: a null byte, before Python 3.12
            return describe(error)
        except OSError:
            continue  # it was just removed
    return None


def _python_files(directory: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(directory):
        # Not into virtual environments, and nothing hidden.
        folders[:] = sorted(
            name
            for name in folders
            if name not in _SKIPPED and name[0] != "." and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))  # noqa: PTH110, PTH118
        )
        yield from (os.path.join(folder, name) for name in files if name.endswith(".py"))  # noqa: PTH118


def _tell(text: str) -> None:
    print(f"novasvc: {text}", file=sys.stderr, flush=True)  # noqa: T201 - for the person at the terminal


def _how(status: int) -> str:
    return f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"


def _end(running: "subprocess.Popen[bytes]", *, interrupted: bool) -> None:
    """Have the process drain, or kill it if it takes too long."""
    if interrupted and not _ends_within(running, _INTERRUPTED):
        running.send_signal(signal.SIGINT)
    elif not interrupted:
        running.terminate()  # does nothing if it has ended
    if not _ends_within(running, _DRAIN):
        running.kill()
        running.wait()


def _ends_within(running: "subprocess.Popen[bytes]", seconds: float) -> bool:
    try:
        running.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
