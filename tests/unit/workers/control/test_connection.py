"""What is said over a control socket, on a transport in memory and a Clock."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from novasvc.interfaces import ISupervisor
from novasvc.workers.control.commands import Command, RequestError
from novasvc.workers.control.connection import IDLE_TIMEOUT, MAX_REQUEST_LENGTH, ControlConnection
from novasvc.workers.errors import ReloadError, ResizeError
from tests.support.control_rig import StandInSupervisor
from tests.support.examples import examples


class Talk:
    """A connection that was begun."""

    def __init__(self) -> None:
        self.supervisor = StandInSupervisor()
        self.clock = Clock()
        self.others: set[ControlConnection] = set()
        self.connection = ControlConnection(self.supervisor, "uid 0, pid 1", self.others, self.clock)
        self.transport = StringTransport()
        self.connection.makeConnection(self.transport)

    def say(self, *requests: Any) -> None:
        """Send bytes as they are, and all else as a line of JSON."""
        for request in requests:
            data = request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n"
            self.connection.dataReceived(data)

    def answers(self) -> list[Any]:
        """Return what was answered since."""
        lines = self.transport.value().split(b"\n")
        assert lines.pop() == b""
        self.transport.clear()
        return [json.loads(line) for line in lines]

    def ask(self, request: Any) -> Any:
        """Return the only answer."""
        self.say(request)
        (answer,) = self.answers()
        return answer

    def lose(self) -> None:
        """Let the other end go."""
        self.connection.connectionLost(Failure(ConnectionAborted()))


class StandInTests(SynchronousTestCase):
    def test_interface(self) -> None:
        """The stand-in is what the real supervisor is to the socket."""
        self.assertTrue(verifyObject(ISupervisor, StandInSupervisor()))


class ParseTests(SynchronousTestCase):
    """Tests for novasvc.workers.control.commands.Command.parse."""

    def refusal(self, line: bytes) -> str:
        return str(self.assertRaises(RequestError, Command.parse, line))

    def test_arguments(self) -> None:
        """Arguments go by name; one that is not required may be left out, or be null."""
        for line, expected in (
            (b'{"command": "workers"}', Command("workers", {})),
            (b'{"command": "resize", "count": 3}\r', Command("resize", {"count": 3, "server": None})),
            (b'{"server": "api", "count": 3, "command": "resize"}', Command("resize", {"count": 3, "server": "api"})),
            (b'{"command": "drain"}', Command("drain", {"number": None})),
            (b'{"command": "drain", "number": null}', Command("drain", {"number": None})),
            (b'{"command": "drain", "number": 0}', Command("drain", {"number": 0})),
        ):
            self.assertEqual(Command.parse(line), expected)

    def test_no_request(self) -> None:
        """What is no object with a command is refused, and one that would do is shown."""
        example = 'a request is one line, such as {"command": "workers"}'
        for line in (b"", b"x", b"\xff", b"[" * 60000, b"9" * 5000, b'{"command"', b'"\\ud800'):
            refusal = self.refusal(line)
            self.assertRegex(refusal, "^the request is not JSON: .{1,200}; ")
            self.assertIn(example, refusal)
        for line in (b"null", b"[]", b"{}", b'"workers"', b'[{"command": "workers"}]'):
            self.assertEqual(self.refusal(line), f'the request is not an object with the key "command"; {example}')

    def test_unknown_command(self) -> None:
        """A command that there is not is refused, and those that there are, are listed."""
        names = "there are: workers, resize, drain, reload, restart, inspect, dump, metrics, health, who"
        self.assertEqual(self.refusal(b'{"command": "reolad"}'), f"there is no command 'reolad'; {names}")
        for line in (b'{"command": 1}', b'{"command": []}', b'{"command": "__class__"}', b'{"command": null}'):
            self.assertIn(names, self.refusal(line))

    def test_wrong_arguments(self) -> None:
        """An argument that is wrong, unknown or missing is refused, and what would be right is said."""
        takes = "it takes count (an integer >= 1) and server (a string, or null)"
        for given_, expected in (
            ({"count": "3"}, "resize: invalid count '3'; give an integer >= 1"),
            ({"count": True}, "resize: invalid count True; give an integer >= 1"),
            ({"count": 0}, "resize: invalid count 0; give an integer >= 1"),
            ({"count": 1.0}, "resize: invalid count 1.0; give an integer >= 1"),
            ({"count": None}, "resize: invalid count None; give an integer >= 1"),
            ({"count": 1, "server": 1}, "resize: invalid server 1; give a string, or null"),
            ({}, f"resize lacks the argument count; {takes}"),
            ({"count": 1, "sever": "api"}, f"resize takes no argument 'sever'; {takes}"),
        ):
            self.assertEqual(self.refusal(json.dumps({"command": "resize", **given_}).encode()), expected)
        self.assertEqual(
            self.refusal(b'{"command": "dump", "now": true}'), "dump takes no argument 'now'; it takes no arguments"
        )

    def test_long_value(self) -> None:
        """A wrong value is shown in part, however large and deep it is."""
        for value in ("x" * 60000, [[]] * 10000, {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": 1}}}}}}}}):
            self.assertLess(len(self.refusal(json.dumps({"command": "drain", "number": value}).encode())), 300)
        self.assertLess(len(self.refusal(b'{"command": "drain", "number": ' + b"[" * 900 + b"]" * 900 + b"}")), 300)


class ControlConnectionTests(SynchronousTestCase):
    """Tests for novasvc.workers.control.connection.ControlConnection."""

    def setUp(self) -> None:
        self.talk = Talk()
        self.supervisor = self.talk.supervisor

    def test_commands(self) -> None:
        """Each command asks the supervisor, and answers with what it says."""
        self.supervisor.changed = [{"setting": "workers", "before": "1", "after": "2"}]
        for request, asked, result in (
            ({"command": "workers"}, ("workers",), self.supervisor.rows),
            ({"command": "resize", "count": 3}, ("resize", 3, None), None),
            ({"command": "resize", "count": 3, "server": "api"}, ("resize", 3, "api"), None),
            ({"command": "drain", "number": 1}, ("drain", 1), None),
            ({"command": "drain"}, ("drain", None), None),
            ({"command": "reload"}, ("reload",), self.supervisor.changed),
            ({"command": "reload", "wait": True}, ("reload",), self.supervisor.changed),
            ({"command": "reload", "wait": False}, ("begin_reload",), None),
            ({"command": "restart"}, ("restart",), None),
            ({"command": "dump"}, ("dump",), self.supervisor.dumped),
        ):
            self.assertEqual(self.talk.ask(request), {"result": result})
            self.assertEqual(self.supervisor.asked.pop(), asked)

    def test_who(self) -> None:
        """A supervisor says its process and its version, and how its reloads went."""
        result = self.talk.ask({"command": "who"})["result"]
        self.assertEqual(sorted(result), ["pid", "reloads", "version"])
        self.assertEqual(result["reloads"], self.supervisor.reloads)

    def test_refused(self) -> None:
        """What the supervisor refuses is answered with the error's name and text; the connection stays."""
        self.supervisor.failing = ResizeError(99, "at most 64 fit")
        self.assertEqual(
            self.talk.ask({"command": "resize", "count": 99}),
            {"error": {"type": "ResizeError", "message": "cannot run 99 workers: at most 64 fit"}},
        )
        self.supervisor.failing = None
        self.supervisor.pending = fail(ReloadError("it is broken"))
        message = "reload failed, previous configuration kept: it is broken"
        self.assertEqual(self.talk.ask({"command": "reload"}), {"error": {"type": "ReloadError", "message": message}})
        self.supervisor.pending = None
        self.assertIn("result", self.talk.ask({"command": "workers"}))

    def test_bug(self) -> None:
        """An error that nobody meant is logged, and answered without its traceback; the connection stays."""
        self.supervisor.failing = ZeroDivisionError("oops")
        error = self.talk.ask({"command": "workers"})["error"]
        self.assertEqual(error["type"], "ZeroDivisionError")
        self.assertRegex(error["message"], "^this is a bug, please report it: ZeroDivisionError: oops .[^\n]*$")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.supervisor.failing = None
        self.supervisor.rows = [{"number": {1, 2}}]
        self.assertEqual(self.talk.ask({"command": "workers"})["error"]["type"], "TypeError")
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.assertIn("result", self.talk.ask({"command": "dump"}))

    def test_wrong_request(self) -> None:
        """A wrong request is answered with what would be right; the connection stays."""
        for line in (b"\n", b"x\n", b'{"command": "x"}\n', b'{"command": "resize"}\n'):
            self.talk.say(line)
            (answer,) = self.talk.answers()
            self.assertEqual(answer["error"]["type"], "RequestError")
        self.assertFalse(self.talk.transport.disconnecting)
        self.assertEqual(self.supervisor.asked, [])

    def test_pieces(self) -> None:
        """Requests may come in pieces, or several at once; they are answered in their order."""
        data = b'{"command": "workers"}\n{"command": "dump"}\n{"command": "drain", "number": 1}\n'
        for number in range(len(data)):
            self.talk.say(data[number : number + 1])
        self.assertEqual(len(self.talk.answers()), 3)
        self.talk.say(data)
        self.assertEqual(len(self.talk.answers()), 3)
        self.assertEqual(self.supervisor.asked, [("workers",), ("dump",), ("drain", 1)] * 2)

    def test_one_at_a_time(self) -> None:
        """While a request is under way, the next is not begun, and nothing is read."""
        reloading = self.supervisor.wait()
        self.talk.say({"command": "reload"}, {"command": "workers"})
        self.assertEqual(self.supervisor.asked, [("reload",)])
        self.assertEqual(self.talk.transport.producerState, "paused")
        reloading.callback([])
        self.assertEqual(self.talk.answers(), [{"result": []}, {"result": self.supervisor.rows}])
        self.assertEqual(self.talk.transport.producerState, "producing")

    def test_answers_not_taken(self) -> None:
        """While answers wait to be taken, no request is begun."""
        self.talk.connection.pauseProducing()
        self.talk.say({"command": "workers"}, {"command": "workers"})
        self.assertEqual(self.supervisor.asked, [])
        self.talk.connection.resumeProducing()
        self.assertEqual(len(self.talk.answers()), 2)

    def test_answers_not_taken_while_busy(self) -> None:
        """Answers that are taken while a request is under way do not begin the next."""
        reloading = self.supervisor.wait()
        self.talk.say({"command": "reload"})
        self.talk.connection.pauseProducing()
        self.talk.connection.resumeProducing()
        self.talk.say({"command": "workers"})
        self.assertEqual(self.supervisor.asked, [("reload",)])
        self.talk.connection.pauseProducing()
        reloading.callback([])
        self.assertEqual(self.supervisor.asked, [("reload",)])
        self.talk.connection.resumeProducing()
        self.assertEqual(self.supervisor.asked, [("reload",), ("workers",)])

    def test_too_long(self) -> None:
        """A line that does not end is answered with the limit, and the connection is closed."""
        for data in (
            b"x" * (MAX_REQUEST_LENGTH + 1),
            b"x" * (MAX_REQUEST_LENGTH + 1) + b"\n" + b'{"command": "workers"}\n',
        ):
            talk = Talk()
            talk.say(data)
            (answer,) = talk.answers()
            self.assertEqual(answer["error"]["message"], "the request is too long; the maximum is 65536 bytes")
            self.assertTrue(talk.transport.disconnecting)
            talk.lose()
            self.assertEqual(talk.clock.getDelayedCalls(), [])

    def test_longest(self) -> None:
        """The longest line that is allowed is read."""
        request = b'{"command": "workers"}'
        self.talk.say(request + b" " * (MAX_REQUEST_LENGTH - len(request)) + b"\n")
        self.assertEqual(self.talk.answers(), [{"result": self.supervisor.rows}])

    def test_idle(self) -> None:
        """A connection that asks nothing is closed, however slowly it drips; each answer gives it time anew."""
        self.talk.clock.advance(IDLE_TIMEOUT - 1)
        self.assertIn("result", self.talk.ask({"command": "workers"}))
        self.talk.clock.advance(IDLE_TIMEOUT - 1)
        self.talk.say(b"{")
        self.assertFalse(self.talk.transport.disconnected)
        self.talk.clock.advance(1)
        self.assertTrue(self.talk.transport.disconnected)

    def test_not_idle(self) -> None:
        """A request may take its time; the next one has its own again."""
        reloading = self.supervisor.wait()
        self.talk.say({"command": "reload"})
        self.talk.clock.advance(IDLE_TIMEOUT * 100)
        self.assertFalse(self.talk.transport.disconnected)
        reloading.callback([])
        self.assertEqual(self.talk.answers(), [{"result": []}])
        self.talk.clock.advance(IDLE_TIMEOUT)
        self.assertTrue(self.talk.transport.disconnected)

    def test_waits_for_the_end(self) -> None:
        """Who drains the supervisor may wait for its end as long as it takes."""
        self.assertEqual(self.talk.ask({"command": "drain"}), {"result": None})
        self.talk.clock.advance(IDLE_TIMEOUT * 100)
        self.assertFalse(self.talk.transport.disconnected)

    def test_asker_gone(self) -> None:
        """What was asked for goes on when who asked is gone; how it ends disturbs nobody."""
        for outcome in ([], ReloadError("it is broken"), ZeroDivisionError()):
            talk = Talk()
            reloading: Deferred[Any] = talk.supervisor.wait()
            talk.say({"command": "reload"}, {"command": "workers"})
            self.assertEqual(talk.others, {talk.connection})
            talk.lose()
            self.assertFalse(talk.supervisor.cancelled)
            self.assertEqual((talk.others, talk.clock.getDelayedCalls()), (set(), []))
            reloading.callback(outcome) if isinstance(outcome, list) else reloading.errback(outcome)
            self.assertEqual(talk.transport.value(), b"")
            self.assertEqual(talk.supervisor.asked, [("reload",)])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_end_of_requests(self) -> None:
        """Who sends no more still gets its answer, and then the end."""
        self.talk.say({"command": "workers"})
        self.talk.connection.readConnectionLost()
        self.assertEqual(self.talk.answers(), [{"result": self.supervisor.rows}])
        self.assertTrue(self.talk.transport.disconnecting)

    def test_nobody_reads(self) -> None:
        """Who reads no more is closed."""
        self.talk.connection.writeConnectionLost()
        self.assertTrue(self.talk.transport.disconnected)

    def test_finish(self) -> None:
        """When the service stops, a request under way is answered with that, once, and it is not cancelled."""
        reloading = self.supervisor.wait()
        self.talk.say({"command": "reload"})
        self.talk.connection.finish()
        (answer,) = self.talk.answers()
        self.assertEqual(
            answer["error"],
            {
                "type": "UnfinishedError",
                "message": "the supervisor is shutting down; reload() may be incomplete",
            },
        )
        self.assertTrue(self.talk.transport.disconnecting)
        reloading.callback([])
        self.assertEqual(self.talk.answers(), [])
        self.assertFalse(self.supervisor.cancelled)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
_ALMOST = st.fixed_dictionaries(
    {"command": st.sampled_from(["workers", "resize", "drain", "reload", "dump", "who"]) | _JSON},
    optional={"count": _JSON, "server": _JSON, "number": _JSON, "x": _JSON},
)
_LINES = st.lists(
    st.binary(max_size=200).map(lambda data: data.replace(b"\n", b""))
    | (_JSON | _ALMOST).map(lambda value: json.dumps(value).encode()),
    max_size=8,
)


class FuzzTests(SynchronousTestCase):
    @settings(max_examples=examples(80))
    @given(_LINES, st.data())
    def test_any_lines(self, lines: list[bytes], data: st.DataObject) -> None:
        """Whatever is sent, in whatever pieces: each line has one answer, and the connection stays."""
        talk = Talk()
        sent = b"".join(line + b"\n" for line in lines)
        while sent:
            size = data.draw(st.integers(1, len(sent)))
            talk.say(sent[:size])
            sent = sent[size:]
        answers = talk.answers()
        self.assertEqual(len(answers), len(lines))
        for answer in answers:
            (kind,) = answer
            if kind == "error":
                self.assertIn(answer["error"]["type"], {"RequestError", "NoSuchWorkerError"})
        self.assertFalse(talk.transport.disconnecting)
        self.assertFalse(talk.transport.disconnected)
