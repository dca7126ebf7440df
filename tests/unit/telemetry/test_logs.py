"""What a log event carries, and how it is written."""

import io
import json
import os
import resource
import signal
import stat
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import TextIO

from twisted.internet.task import Clock
from twisted.logger import Logger, LogPublisher, capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext, current_context
from novasvc.telemetry.logfiles import LogFile, open_log
from novasvc.telemetry.logs import make_observer, node_fields

NODE = {"host": "h1", "binary": "novasvc-agent", "topic": "agent"}


class ObserverTests(SynchronousTestCase):
    """Tests for novasvc.telemetry.logs.make_observer."""

    def written(self, emit: object, **options: object) -> str:
        """Return what is written when a node, serving a request, logs."""
        file = io.StringIO()
        log = Logger("app", observer=LogPublisher(make_observer(file, **options)))

        def as_node() -> None:
            node_fields.set(NODE)
            current_context.set(RequestContext(request_id="req-1"))
            emit(log)

        copy_context().run(as_node)
        return file.getvalue()

    def test_json(self) -> None:
        """A JSON line is one flat object with the node's fields and the request id."""
        line = self.written(lambda log: log.info("hello {name}", name="w"), as_json=True)
        event = json.loads(line)
        self.assertTrue(event.pop("time").endswith("+00:00"))
        self.assertEqual(event, {"level": "info", "logger": "app", "message": "hello w", "request_id": "req-1", **NODE})

    def test_text(self) -> None:
        """A text line names source, level, node and request before the message."""
        line = self.written(lambda log: log.info("hello {name}", name="w"))
        self.assertRegex(line, r"^\S+ \[app#info\] \[novasvc-agent@h1 agent req-1\] hello w\n$")

    def test_failure(self) -> None:
        """A failure brings its traceback along in both forms."""

        def fail(log: Logger) -> None:
            log.failure("broke", failure=Failure(ValueError("boom")))

        self.assertIn("ValueError: boom", self.written(fail))
        self.assertIn("ValueError: boom", json.loads(self.written(fail, as_json=True))["traceback"])

    def test_newlines(self) -> None:
        """A message of several lines cannot pass for several events."""
        line = self.written(lambda log: log.info("a\n2026 [forged] b"))
        self.assertEqual([text[:2] for text in line.splitlines()][1:], ["  "])

    def test_newlines_in_failure(self) -> None:
        """Neither can the text of an exception, which may quote what a peer has sent."""
        error = ValueError("no stock of x\n2026 [forged] b")
        lines = self.written(lambda log: log.failure("broke", failure=Failure(error))).splitlines()
        self.assertEqual({text[:2] for text in lines[1:]}, {"  "})
        self.assertEqual(lines[-1], "  2026 [forged] b")

    def test_controls(self) -> None:
        """What would move a terminal's cursor, or cannot be written at all, is written as its code."""
        line = self.written(lambda log: log.info("{it}", it="a\rb\x1b[2Jc\ud800d"))
        self.assertTrue(line.endswith(r"a\x0db\x1b[2Jc\ud800d" + "\n"), line)

    def test_encoding(self) -> None:
        """What the encoding of standard output cannot represent is written as its code."""
        octets = io.BytesIO()
        file = io.TextIOWrapper(octets, encoding="ascii")
        Logger("app", observer=LogPublisher(make_observer(file))).info("host {host}", host="東京")
        file.flush()
        self.assertTrue(octets.getvalue().endswith(b"host \\u6771\\u4eac\n"), octets.getvalue())

    def test_level(self) -> None:
        """Events below the level are dropped."""
        self.assertEqual(self.written(lambda log: log.debug("x")), "")
        self.assertNotEqual(self.written(lambda log: log.debug("x"), level="debug"), "")

    def test_defaults(self) -> None:
        """An event outside every node gets the process's own fields."""
        file = io.StringIO()
        observer = make_observer(file, as_json=True, default=NODE)
        Logger("app", observer=LogPublisher(observer)).info("x")
        event = json.loads(file.getvalue())
        self.assertEqual({name: event[name] for name in NODE}, NODE)
        self.assertIsNone(event["request_id"])

    def test_own_fields_win(self) -> None:
        """A field that the event brings itself is not overwritten."""
        line = self.written(lambda log: log.info("x", host="other"), as_json=True)
        self.assertEqual(json.loads(line)["host"], "other")

    def test_unserializable(self) -> None:
        """An event with what JSON cannot hold is written all the same."""
        line = self.written(lambda log: log.info("{it}", it=object()), as_json=True)
        self.assertIn("object object", json.loads(line)["message"])


class TurnsClock(Clock):
    """A reactor whose turns are the test's."""

    def callFromThread(self, function: Callable[[], None]) -> None:
        self.callLater(0, function)

    def callWhenRunning(self, function: Callable[..., object], *args: object, **kwargs: object) -> None:
        function(*args, **kwargs)


class OpenLogTests(SynchronousTestCase):
    """Tests for novasvc.telemetry.logfiles.open_log."""

    def setUp(self) -> None:
        self.reactor = TurnsClock()
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)

    def open(self, path: str) -> TextIO:
        log_file = open_log(path, daemon=True, reactor=self.reactor)
        self.addCleanup(log_file.close)
        return log_file

    def test_daemon_needs_file(self) -> None:
        """A daemon that was told to log to standard output ends with one line that says what to do."""
        error = self.assertRaises(SystemExit, self.open, "-")
        self.assertIn("--logfile", str(error))

    def test_file(self) -> None:
        """A file name is opened to be appended to."""
        path = self.mktemp()
        self.open(path).write("x\n")
        self.open(path).write("y\n")
        self.assertEqual(Path(path).read_text(), "x\ny\n")

    def test_unusable(self) -> None:
        """A file that cannot be written is one line that names it, the reason and what to do."""
        for path, reason in (("/nonexistent/x.log", "No such file"), (str(Path.cwd()), "Is a directory")):
            error = str(self.assertRaises(SystemExit, self.open, path))
            self.assertRegex(error, f"^novasvc: cannot log to '{path}': {reason}.*; give --logfile a file")

    def test_partial_line(self) -> None:
        """A line of which only a part could be written is ended before the next one, but not in a new file."""
        path = self.mktemp()
        log_file = self.open(path)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        for number in (1, 2):
            resource.setrlimit(resource.RLIMIT_FSIZE, (3, limits[1]))
            try:
                self.assertRaises(OSError, log_file.write, "line\n")
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            if number == 1:
                log_file.write("next\n")
                self.assertEqual(Path(path).read_text(), "lin\nnext\n")
                Path(path).rename(f"{path}.moved")
                Path(path).touch()
        Path(path).rename(f"{path}.again")
        Path(path).touch()
        log_file.write("new\n")
        self.assertEqual((Path(f"{path}.again").read_text(), Path(path).read_text()), ("lin", "new\n"))

    def test_rotated(self) -> None:
        """SIGUSR1 begins a new file, in the reactor's thread."""
        path = self.mktemp()
        log_file = self.open(path)
        log_file.write("old\n")
        signal.raise_signal(signal.SIGUSR1)
        log_file.write("old, too\n")
        self.reactor.advance(0)
        log_file.write("new\n")
        self.assertEqual((Path(path).read_text(), Path(f"{path}.1").read_text()), ("new\n", "old\nold, too\n"))

    def test_handler_is_kept(self) -> None:
        """Who handles SIGUSR1 already goes on doing so."""

        def mine(*_: object) -> None:
            """Do nothing."""

        signal.signal(signal.SIGUSR1, mine)
        self.open(self.mktemp())
        self.assertIs(signal.getsignal(signal.SIGUSR1), mine)

    def test_renamed_by_another(self) -> None:
        """SIGUSR1 renames nothing where another program has done so; mode and owner of the new file stay."""
        path = Path(self.mktemp())
        log_file = self.open(str(path))
        log_file.write("old\n")
        path.rename(f"{path}.moved")
        path.touch()
        path.chmod(0o640)
        signal.raise_signal(signal.SIGUSR1)
        self.reactor.advance(0)
        log_file.write("new\n")
        self.assertEqual((Path(f"{path}.moved").read_text(), path.read_text()), ("old\n", "new\n"))
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o640)
        self.assertFalse(Path(f"{path}.1").exists())

    def test_moved_away(self) -> None:
        """SIGUSR1 makes the file again where another program has only renamed it, with the mode of the one before."""
        path = Path(self.mktemp())
        log_file = self.open(str(path))
        path.chmod(0o640)
        log_file.write("old\n")
        path.rename(f"{path}.moved")
        log_file.write("old, too\n")
        self.assertFalse(path.exists())
        signal.raise_signal(signal.SIGUSR1)
        self.reactor.advance(0)
        log_file.write("new\n")
        self.assertEqual((Path(f"{path}.moved").read_text(), path.read_text()), ("old\nold, too\n", "new\n"))
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o640)

    def test_several_signals(self) -> None:
        """Each signal renames once, and no rotated file is written over."""
        path = Path(self.mktemp())
        log_file = self.open(str(path))
        for word in ("one", "two", "three"):
            log_file.write(word)
            signal.raise_signal(signal.SIGUSR1)
            self.reactor.advance(0)
        names = sorted(entry.name for entry in path.parent.glob(f"{path.name}*"))
        self.assertEqual([(path.parent / name).read_text() for name in names], ["", "three", "two", "one"])

    def test_idle(self) -> None:
        """A process that logs nothing lets go of a file that another program has replaced, within a second."""
        path = Path(self.mktemp())
        log_file = self.open(str(path))
        path.rename(f"{path}.moved")
        path.touch()
        self.reactor.advance(1)
        self.assertTrue(os.path.samestat(os.fstat(log_file.fileno()), path.stat()))

    def test_link(self) -> None:
        """Where the name is a link, the file that it leads to is renamed, and the new one has the mode of that."""
        path, link = Path(self.mktemp()), Path(self.mktemp())
        path.touch()
        path.chmod(0o640)
        link.symlink_to(path.absolute())
        log_file = self.open(str(link))
        log_file.write("old\n")
        signal.raise_signal(signal.SIGUSR1)
        self.reactor.advance(0)
        log_file.write("new\n")
        self.assertEqual((Path(f"{path}.1").read_text(), path.read_text()), ("old\n", "new\n"))
        self.assertEqual((stat.S_IMODE(path.stat().st_mode), link.is_symlink()), (0o640, True))

    def test_cannot_rotate(self) -> None:
        """A file that cannot be renamed is written to as before, and a line for each signal says why."""
        path = Path("l" * 255)  # NAME.1 is longer than a name may be
        log_file = self.open(str(path))
        self.addCleanup(path.unlink)
        with capturedLogs() as logged:
            for _ in range(2):
                signal.raise_signal(signal.SIGUSR1)
                self.reactor.advance(0)
        log_file.write("on\n")
        self.assertEqual(path.read_text(), "on\n")
        lines = [formatEvent(event) for event in logged]
        self.assertEqual(len(lines), 2, lines)
        for line in lines:
            self.assertRegex(line, f"the log file {path.absolute()} cannot be rotated: File name too long")

    def test_no_regular_file(self) -> None:
        """What is no regular file is never renamed."""
        log_file = self.open(os.devnull)
        signal.raise_signal(signal.SIGUSR1)
        self.reactor.advance(0)
        log_file.write("x\n")
        self.assertTrue(stat.S_ISCHR(Path(os.devnull).stat().st_mode))

    def test_shared(self) -> None:
        """What others write to the file is not written over."""
        path = self.mktemp()
        log_file = self.open(path)
        log_file.write("one\n")
        other = LogFile(path)
        self.addCleanup(other.close)
        other.write("two\n")
        log_file.write("three\n")
        self.assertEqual(Path(path).read_text(), "one\ntwo\nthree\n")


class LogFileTests(SynchronousTestCase):
    """Tests for novasvc.telemetry.logfiles.LogFile."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.path = Path(self.mktemp()).absolute()

    def open(self, descriptor: int | None = None) -> LogFile:
        log_file = LogFile(str(self.path), descriptor, clock=self.clock.seconds)
        self.addCleanup(log_file.close)
        return log_file

    def replace(self) -> Path:
        """Do what logrotate does; return the renamed file."""
        moved = self.path.rename(f"{self.path}.moved")
        self.path.touch()
        return moved

    def test_follows(self) -> None:
        """Lines go to the file that has the name, whoever has renamed the one before."""
        log_file = self.open()
        log_file.write("old\n")
        moved = self.replace()
        log_file.write("new\n")
        self.assertEqual((moved.read_text(), self.path.read_text()), ("old\n", "new\n"))

    def test_between_rename_and_create(self) -> None:
        """While there is no file of the name, lines go to the renamed one, so that logrotate can make the new one."""
        log_file = self.open()
        moved = self.path.rename(f"{self.path}.moved")
        log_file.write("still\n")
        self.clock.advance(9)
        log_file.write("and still\n")
        self.assertFalse(self.path.exists())
        self.path.touch()
        log_file.write("new\n")
        self.assertEqual((moved.read_text(), self.path.read_text()), ("still\nand still\n", "new\n"))

    def test_removed(self) -> None:
        """A file that was removed, and that nobody makes again, is made after a while."""
        log_file = self.open()
        self.path.chmod(0o640)
        self.path.unlink()
        self.assertFalse(log_file.follow())
        self.clock.advance(10)
        log_file.write("new\n")
        self.assertEqual((self.path.read_text(), stat.S_IMODE(self.path.stat().st_mode)), ("new\n", 0o640))

    def test_cannot_follow(self) -> None:
        """Where the new one cannot be opened, lines go on into the old one, and one line says why."""
        folder = Path(self.mktemp())
        folder.mkdir()
        self.path = folder.absolute() / "log"
        log_file = self.open()
        folder.rename(f"{folder}.1")
        with capturedLogs() as logged:
            for _ in range(3):
                log_file.write("on\n")
                self.clock.advance(10)
        self.assertEqual(Path(f"{folder}.1", "log").read_text(), "on\n" * 3)
        self.assertEqual(len(logged), 1)
        self.assertRegex(formatEvent(logged[0]), "cannot be opened again.*: No such file or directory; give uid")

    def test_standard_descriptors(self) -> None:
        """Standard output and standard error follow where they were the log file, and stay where they were not."""
        kept = [os.dup(number) for number in (1, 2)]
        self.addCleanup(lambda: [os.dup2(descriptor, number) for number, descriptor in zip((1, 2), kept, strict=True)])
        with self.path.open("a") as opened:
            os.dup2(opened.fileno(), 2)
        log_file = self.open()
        self.replace()
        log_file.follow()
        same = [os.path.samestat(os.fstat(number), self.path.stat()) for number in (1, 2)]
        inheritable = os.get_inheritable(2), os.get_inheritable(log_file.fileno())
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
        self.assertEqual((same, inheritable), ([False, True], (True, False)))

    def test_descriptor(self) -> None:
        """One that was opened before needs no right to open it."""
        with self.path.open("a") as opened:
            self.path = Path("/nonexistent/log")
            log_file = self.open(opened.fileno())
        log_file.write("x\n")
        self.assertEqual(Path(opened.name).read_text(), "x\n")

    def test_announced_late(self) -> None:
        """A signal for a rotation that was noticed before renames nothing; the next one does."""
        log_file = self.open()
        self.replace()
        log_file.write("new\n")
        self.clock.advance(60)
        self.assertFalse(log_file.rotate())
        self.assertEqual(self.path.read_text(), "new\n")
        self.assertTrue(log_file.rotate())
        self.assertEqual(Path(f"{self.path}.1").read_text(), "new\n")

    def test_not_announced(self) -> None:
        """A signal long after a rotation that nobody announced is about another one."""
        log_file = self.open()
        self.replace()
        log_file.write("new\n")
        self.clock.advance(600)
        self.assertTrue(log_file.rotate())

    def test_any_text(self) -> None:
        """What is no Unicode text is written all the same."""
        self.open().write("\udcff\n")
        self.assertEqual(self.path.read_text(), "\\udcff\n")
