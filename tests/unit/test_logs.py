"""What a log event carries, and how it is written."""

import io
import json
import signal
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import TextIO

from twisted.internet.task import Clock
from twisted.logger import Logger, LogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext, current_context
from novasvc.logfiles import ReopenedFile, open_log
from novasvc.logs import make_observer, node_fields

NODE = {"host": "h1", "binary": "novasvc-agent", "topic": "agent"}


class ObserverTests(SynchronousTestCase):
    """Tests for novasvc.logs.make_observer."""

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

    def test_controls(self) -> None:
        """What would move a terminal's cursor, or cannot be written at all, is written as its code."""
        line = self.written(lambda log: log.info("{it}", it="a\rb\x1b[2Jc\ud800d"))
        self.assertTrue(line.endswith(r"a\x0db\x1b[2Jc\ud800d" + "\n"), line)

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
    """Tests for novasvc.logfiles.open_log."""

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

    def test_long(self) -> None:
        """A file that others have made long is rotated, although this process wrote nothing to it."""
        path = self.mktemp()
        self.open(path)
        with Path(path).open("a") as other:
            other.write("x" * 1_000_000)
        self.reactor.advance(10)
        self.assertEqual((Path(path).read_text(), len(Path(f"{path}.1").read_text())), ("", 1_000_000))

    def test_shared(self) -> None:
        """What others write to the file is not written over."""
        path = self.mktemp()
        log_file = self.open(path)
        log_file.write("one\n")
        other = ReopenedFile(path)
        self.addCleanup(other.close)
        other.write("two\n")
        other.flush()
        log_file.write("three\n")
        self.assertEqual(Path(path).read_text(), "one\ntwo\nthree\n")


class ReopenedFileTests(SynchronousTestCase):
    """Tests for novasvc.logfiles.ReopenedFile."""

    def test_follows(self) -> None:
        """Lines go to the file that has the name, whoever has renamed the one before."""
        path = Path(self.mktemp())
        log_file = ReopenedFile(str(path))
        self.addCleanup(log_file.close)
        log_file.write("old\n")
        log_file.flush()
        path.rename(f"{path}.1")
        log_file.write("new\n")
        log_file.flush()
        self.assertEqual((Path(f"{path}.1").read_text(), path.read_text()), ("old\n", "new\n"))

    def test_cannot_follow(self) -> None:
        """Where the new one cannot be opened, lines go on into the old one."""
        folder = Path(self.mktemp())
        folder.mkdir()
        log_file = ReopenedFile(str(folder / "log"))
        self.addCleanup(log_file.close)
        folder.rename(f"{folder}.1")
        log_file.write("on\n")
        log_file.flush()
        self.assertEqual(Path(f"{folder}.1", "log").read_text(), "on\n")

    def test_descriptor(self) -> None:
        """One that was opened before needs no right to open it."""
        path = Path(self.mktemp())
        with path.open("a") as opened:
            log_file = ReopenedFile("/nonexistent/log", opened.fileno())
        self.addCleanup(log_file.close)
        log_file.write("x\n")
        log_file.flush()
        self.assertEqual(path.read_text(), "x\n")
