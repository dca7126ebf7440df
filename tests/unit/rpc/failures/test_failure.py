"""Tests for novasvc.rpc.failures.failure."""

import json
import traceback
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.errors import (
    InvalidArgumentsError,
    MessageFormatError,
    MethodTimeoutError,
    NoSuchMethodError,
    QuarantinedError,
    RedeliveredError,
    RemoteError,
    ResultNotSerializableError,
    RPCTimeoutError,
    UnsupportedVersionError,
)
from novasvc.rpc.failures.failure import decode_error, encode_error
from novasvc.rpc.failures.origin import Origin
from tests.unit.rpc.test_payload import JSON

WIRE_EXAMPLES = (
    InvalidArgumentsError("m", "missing: x"),
    MessageFormatError("it is not JSON"),
    MethodTimeoutError("m", 2.5),
    MethodTimeoutError("m", 2.5, "its server was shutting down"),
    NoSuchMethodError("m"),
    NoSuchMethodError("m", "1.0 of namespace 'n'"),
    RedeliveredError("m"),
    ResultNotSerializableError("m", "it is an object"),
    QuarantinedError("m", 3),
    UnsupportedVersionError("1.4", "m", None),
    UnsupportedVersionError("1.4", "m", "n", "1.0 to 1.3"),
)

PEERS = "oslo_messaging.rpc.dispatcher"
FIELDS = ["class", "module", "message", "tb", "args", "kwargs", "novasvc", "novasvc_state", "novasvc_bases"]
FIELDS += ["novasvc_origin"]


class OwnError(Exception):
    pass


@rpc.error
class KnownError(Exception):
    def __init__(self, item: str) -> None:
        super().__init__(item)
        self.item = item


@rpc.error
class UnreadableError(Exception):
    @property
    def kwargs(self) -> dict[str, int]:
        raise ZeroDivisionError


@rpc.error
class UninspectableError(Exception):
    def __reduce__(self) -> Any:
        raise ZeroDivisionError

    def __init__(self, text: str) -> None:
        super().__init__(text)

    __init__.__signature__ = "none"  # type: ignore[attr-defined]


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


def crossed(error: BaseException) -> Exception:
    return decode_error(encode_error(error))


class FailureTests(SynchronousTestCase):
    def test_form(self) -> None:
        """A failure is encoded as oslo.messaging encodes it, with the last line of a traceback."""
        written = json.loads(encode_error(ValueError("bad value \u00e9", 7)))
        expected = {
            "class": "ValueError",
            "module": "builtins",
            "message": "('bad value \u00e9', 7)",
            "tb": ["ValueError: ('bad value \u00e9', 7)\n"],
            "args": ["bad value \u00e9", 7],
            "kwargs": {},
        }
        self.assertEqual(written, expected)

    def test_wire_errors(self) -> None:
        """Errors in WIRE_ERRORS are rebuilt with their class and arguments."""
        for error in WIRE_EXAMPLES:
            again = crossed(error)
            self.assertEqual((type(again), again.args, str(again)), (type(error), error.args, str(error)))

    def test_refusals_for_peers(self) -> None:
        """A refusal is sent under oslo.messaging's class, with the arguments of its constructor."""
        for error, name, args in (
            (NoSuchMethodError("m"), "NoSuchMethod", ["m"]),
            (UnsupportedVersionError("1.4", "m", "n", "1.0 to 1.3"), "UnsupportedVersion", ["1.4", "m"]),
        ):
            written = json.loads(encode_error(error))
            self.assertEqual((written["class"], written["module"]), (name, PEERS))
            self.assertEqual((written["args"], written["kwargs"], written["message"]), (args, {}, str(error)))

    def test_refusals_of_peers(self) -> None:
        """A peer's refusal is raised as novasvc's class, whether the peer sends a sentence or the arguments."""
        for name, args, error in (
            ("NoSuchMethod", ["Endpoint does not support RPC method x.y"], NoSuchMethodError("x.y")),
            ("NoSuchMethod", ["x"], NoSuchMethodError("x")),
            ("UnsupportedVersion", ["Endpoint does not support RPC version 1.4"], UnsupportedVersionError("1.4")),
            (
                "UnsupportedVersion",
                ["Endpoint does not support RPC version 1.4. Attempted method: echo"],
                UnsupportedVersionError("1.4", "echo"),
            ),
            ("UnsupportedVersion", ["1.4", "echo"], UnsupportedVersionError("1.4", "echo")),
            ("UnsupportedVersion", ["1.4"], UnsupportedVersionError("1.4")),
        ):
            again = decode_error(json.dumps({"class": name, "module": PEERS, "message": "x", "args": args}))
            self.assertEqual((type(again), again.args), (type(error), error.args))

    def test_unknown_of_peers(self) -> None:
        """Any other error of the peers' dispatcher, or one with other arguments, is a RemoteError."""
        for name, fields in (
            ("NoSuchMethod", {"args": []}),
            ("NoSuchMethod", {"args": [1]}),
            ("NoSuchMethod", {"args": ["x"], "kwargs": {"why": 1}}),
            ("NoSuchMethod", {"args": ["x"], "novasvc": None}),
            ("UnsupportedVersion", {"args": ["1", "m", "n"]}),
            ("UnsupportedVersion", {"args": ["1"], "novasvc": {}}),
            ("RPCDispatcherError", {"args": ["x"]}),
        ):
            again = decode_error(json.dumps({"class": name, "module": PEERS, "message": "x", **fields}))
            assert isinstance(again, RemoteError)
            self.assertEqual((again.exc_type, again.module, again.value), (name, PEERS, "x"))

    def test_builtins(self) -> None:
        """Built-in exceptions are rebuilt with their class and arguments."""
        for error in (ValueError("x"), KeyError("x"), OSError(2, "gone"), ZeroDivisionError(), LookupError([1])):
            again = crossed(error)
            self.assertEqual((type(again), again.args), (type(error), error.args))

    def test_others(self) -> None:
        """Any other error becomes a RemoteError with its class and text."""
        for error, module in (
            (OwnError("x"), OwnError.__module__),
            (RPCTimeoutError("t", "m", 1.0), "novasvc.errors"),
            (CancelledError("x"), CancelledError.__module__),
        ):
            again = crossed(error)
            assert isinstance(again, RemoteError)
            self.assertEqual((again.exc_type, again.module), (type(error).__name__, module))
            self.assertEqual(again.value, str(error))
            self.assertEqual(again.traceback, (f"{type(error).__name__}: {error}\n",))

    def test_signals(self) -> None:
        """StopIteration, SystemExit and the like are not rebuilt."""
        for error in (SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(1), StopAsyncIteration()):
            self.assertIsInstance(crossed(error), RemoteError)

    def test_not_looked_up(self) -> None:
        """A name from a peer is neither imported nor called, unless it is in the table of errors."""
        for module, name in (
            ("builtins", "eval"),
            ("builtins", "object"),
            ("builtins", "__import__"),
            ("os", "system"),
            ("novasvc.errors", "NovasvcError"),
            ("novasvc.errors", "describe"),
            ("novasvc.rpc.target", "Target"),
            ("subprocess", "CalledProcessError"),
        ):
            again = decode_error(json.dumps({"class": name, "module": module, "message": "x", "args": ["true"]}))
            assert isinstance(again, RemoteError)
            self.assertEqual((again.exc_type, again.module, again.value), (name, module, "x"))

    def test_misfit_arguments(self) -> None:
        """Arguments that the class refuses, or whose error cannot be shown, make a RemoteError."""
        for module, name, args, kwargs in (
            ("builtins", "UnicodeDecodeError", ["x"], {}),
            ("builtins", "ExceptionGroup", ["x", []], {}),
            ("builtins", "ValueError", ["x"], {"unknown": 1}),
            ("builtins", "ValueError", "x", {}),
            ("builtins", "ValueError", [], []),
            ("novasvc.errors", "NoSuchMethodError", [], {}),
            ("novasvc.errors", "MethodTimeoutError", ["m", "soon"], {}),
        ):
            fields = {"class": name, "module": module, "message": "y", "args": args, "kwargs": kwargs}
            again = decode_error(json.dumps(fields))
            assert isinstance(again, RemoteError)
            self.assertEqual((again.exc_type, again.value), (name, "y"))

    def test_minimal(self) -> None:
        """Class and module alone are enough."""
        again = decode_error('{"class": "ValueError", "module": "exceptions"}')
        self.assertEqual((type(again), again.args), (ValueError, ()))
        foreign = decode_error('{"class": "X", "module": "m"}')
        self.assertEqual((type(foreign), foreign.args), (RemoteError, ("X", "", (), "m", "")))

    @given(
        st.text()
        | JSON.map(json.dumps)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            JSON | st.sampled_from(["builtins", "ValueError", "novasvc.errors", "NoSuchMethodError"]),
        ).map(json.dumps)
        | st.dictionaries(st.sampled_from(FIELDS[3:]), JSON).map(
            lambda fields: json.dumps({"class": "KnownError", "module": __name__, **fields})
        )
    )
    def test_anything(self, text: str) -> None:
        """Any text from a peer becomes an error that can be shown."""
        error = decode_error(text)
        self.assertIsInstance(error, Exception)
        self.assertIsInstance(str(error), str)

    def test_traceback(self) -> None:
        """A traceback is kept: in a RemoteError's data, or as a note on another error."""
        lines = ["Traceback (most recent call last):\n", "  File x\n", "ValueError: x\n"]
        remote = decode_error(encode_error(OwnError("x"), lines))
        assert isinstance(remote, RemoteError)
        self.assertEqual(remote.traceback, tuple(lines))
        bare = json.loads(encode_error(OwnError("x"), [line.rstrip() for line in lines]))
        self.assertEqual(bare["tb"], lines)
        own = decode_error(encode_error(ValueError("x"), lines))
        self.assertIn("".join(lines), "".join(traceback.format_exception(own)))
        self.assertEqual(str(own), "x")

    def test_traceback_as_text(self) -> None:
        """A traceback may be one string."""
        again = decode_error('{"class": "X", "module": "m", "tb": "line 1\\nline 2\\n"}')
        assert isinstance(again, RemoteError)
        self.assertEqual(again.traceback, ("line 1\nline 2\n",))

    def test_unserializable_arguments(self) -> None:
        """Arguments that JSON cannot hold are replaced by the error's text."""
        again = crossed(ValueError("x", object))
        self.assertIsInstance(again, ValueError)
        self.assertIn("<class 'object'>", str(again))

    def test_unprintable(self) -> None:
        """An error whose str() raises can be encoded."""
        again = crossed(UnprintableError())
        assert isinstance(again, RemoteError)
        self.assertEqual(again.exc_type, "UnprintableError")

    def test_keywords(self) -> None:
        """An error's keyword arguments are sent and rebuilt."""
        error: Any = ImportError("x", name="n")
        error.kwargs = {"name": "n"}
        again = crossed(error)
        self.assertEqual((type(again), again.name), (ImportError, "n"))  # type: ignore[attr-defined]

    def test_known(self) -> None:
        """A registered error is sent as oslo.messaging sends it, with fields of our own, and rebuilt."""
        written = json.loads(encode_error(KnownError("tea")))
        self.assertEqual((written["class"], written["module"], written["args"]), ("KnownError", __name__, ["tea"]))
        again = crossed(KnownError("tea"))
        self.assertEqual((type(again), vars(again)), (KnownError, {"item": "tea"}))

    def test_known_of_peers(self) -> None:
        """A registered error of a peer is made of its args."""
        again = decode_error(json.dumps({"class": "KnownError", "module": __name__, "message": "x", "args": ["tea"]}))
        self.assertEqual((type(again), vars(again)), (KnownError, {"item": "tea"}))

    def test_changed(self) -> None:
        """A registered error whose class cannot be called with its arguments is a RemoteError that says why."""
        for args, reason in ((["tea", 3], "takes 2 positional arguments but 3 were given"), ("tea", "'args' is a str")):
            again = decode_error(json.dumps({"class": "KnownError", "module": __name__, "message": "x", "args": args}))
            assert isinstance(again, RemoteError)
            self.assertIn(reason, again.reason)
            self.assertTrue(
                str(again).startswith(f"remote error: KnownError x; not raised as {__name__}.KnownError: Type")
            )

    def test_uncooperative(self) -> None:
        """An error whose attributes cannot be read, or whose class cannot be inspected, is encoded nevertheless."""
        for error in (UnreadableError("x"), UninspectableError("x")):
            again = crossed(error)
            self.assertEqual((type(again), again.args), (type(error), ("x",)))

    def test_wrapped_by_peers(self) -> None:
        """A RemoteError that a peer has let through is the error within, however often it was wrapped."""
        text = "Remote error: OutOfStock no\ntea\n['OutOfStock: no\\n'].".replace("\\\\", "\\")
        for _ in range(2):
            fields = {"class": "RemoteError", "module": "oslo_messaging.rpc.client", "message": text, "args": [text]}
            again = decode_error(json.dumps(fields))
            assert isinstance(again, RemoteError)
            self.assertEqual((again.exc_type, again.value, again.module), ("OutOfStock", "no\ntea", ""))
            text = f"Remote error: RemoteError {text}\n['...']."
        fields = {**fields, "message": "Remote error: cut"}
        self.assertEqual(decode_error(json.dumps(fields)).args[:2], ("RemoteError", "Remote error: cut"))

    def test_wrapped_by_old_ones(self) -> None:
        """A RemoteError that an older novasvc has let through is the error within."""
        args = ["KnownError", "tea", [], __name__]
        fields = {"class": "RemoteError", "module": "novasvc.errors", "message": "remote error: KnownError tea"}
        again = decode_error(json.dumps({**fields, "args": args}))
        self.assertEqual((type(again), str(again)), (KnownError, "tea"))
        again = decode_error(json.dumps({**fields, "args": [1, None, {}, []]}))
        self.assertEqual(type(again), RemoteError)

    def test_passed_on_to_peers(self) -> None:
        """The traceback of an error that went through a service says so, as oslo.messaging shows no other field."""
        here = Origin(topic="order", method="buy", host="h1", request_id="req-1")
        for error, method, lines in (
            (ValueError("x"), "buy", ["ValueError: x\n"]),
            (NoSuchMethodError("x"), None, [f"NoSuchMethod: {NoSuchMethodError('x')}\n"]),
            (
                RPCTimeoutError("stock", "reserve", 2.0),
                "buy",
                [f"Raised by {here}\nRPCTimeoutError: {RPCTimeoutError('stock', 'reserve', 2.0)}\n"],
            ),
        ):
            self.assertEqual(json.loads(encode_error(error, here=here, method=method))["tb"], lines)
