import json
import tempfile
from base64 import b64encode
from functools import partial
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc.rpc.identity.signature import _FIELDS, SignatureError, _signed
from novasvc.rpc.message import encode_request, read_request, unwrap
from novasvc.rpc.target import Target
from tests.support.keys import KeyRing

TOPIC, SERVER, EVERYBODY = Target("stock"), Target("stock", "h1"), Target("stock", fanout=True)


class SignatureTests(SynchronousTestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.now = 1_000_000.0
        self.ring = KeyRing(Path(temporary.name), lambda: self.now, "shop", "admin")

    def encode(self, target: Target = SERVER, name: str = "shop", **args: Any) -> bytes:
        return encode_request("reserve", args, {"user_id": "u1"}, sign=partial(self.ring.signer(name).sign, target))

    def verify(self, message: bytes, sent_to: str = "server", target: Target = SERVER) -> str:
        return self.ring.verifier().verify(message, target, sent_to)

    def refused(self, problem: str, message: bytes, **given: Any) -> None:
        self.assertIn(problem, str(self.assertRaises(SignatureError, self.verify, message, **given)))

    def changed(self, message: bytes, **changes: Any) -> bytes:
        """Change fields of a signature."""
        outer = json.loads(message)
        outer["novasvc.signature"] |= changes
        return json.dumps(outer).encode()

    def forged(self, **changes: Any) -> bytes:
        """Sign with fields of one's own, as a holder of a key could."""
        signer = self.ring.signer("shop")
        text = json.dumps({"method": "reserve"})
        fields = {"key": signer.key.key_id, "time": self.now, "topic": "stock", "server": "h1", "fanout": False}
        fields |= changes
        value = signer.key.private.sign(_signed([fields[name] for name in _FIELDS], text))
        signature = {**fields, "value": b64encode(value).decode()}
        return json.dumps({"oslo.version": "2.0", "oslo.message": text, "novasvc.signature": signature}).encode()

    def test_verified(self) -> None:
        """A signed request names its identity, and reads as an unsigned one does."""
        for name in ("shop", "admin"):
            self.assertEqual(self.verify(self.encode(name=name, item="é")), name)
        request = read_request(unwrap(self.encode(item="é")))
        self.assertEqual((request.method, request.args, request.context), ("reserve", {"item": "é"}, {"user_id": "u1"}))

    def test_unsigned(self) -> None:
        """A request without a signature, or with something else in its place, is refused."""
        self.refused("it is not signed", encode_request("reserve", {}, {}))
        self.refused("it is not signed", b'{"method": "reserve"}')
        outer = json.loads(self.encode())
        for wrong in (None, "x", [], 7):
            self.refused("it is not signed", json.dumps({**outer, "novasvc.signature": wrong}).encode())

    def test_changed(self) -> None:
        """A change of the request, or of what is signed with it, is noticed."""
        message = self.encode(amount=1)
        self.refused("does not fit it", message.replace(b'\\"amount\\": 1', b'\\"amount\\": 2'))
        self.refused("does not fit it", message.replace(b'\\"u1\\"', b'\\"u2\\"'))
        for changes in ({"time": self.now + 1}, {"topic": "till"}, {"server": None}, {"fanout": True}):
            self.refused("does not fit it", self.changed(message, **changes))
        for value in ("", "AAAA", "%", None, 7):
            self.refused("does not fit it", self.changed(message, value=value))

    def test_unknown_key(self) -> None:
        """A key that is not known is refused, and so is another's key id."""
        self.ring.make("shop", "stranger", known=False)
        self.refused("not among those of rpc_callers_file", self.encode(name="stranger"))
        for key in (None, ["x"], "x" * 300):
            self.refused("not among those", self.changed(self.encode(), key=key))
        other = self.ring.signer("admin").key.key_id
        self.refused("does not fit it", self.changed(self.encode(), key=other))

    def test_target(self) -> None:
        """A request is accepted only by the receiver, and on the way, that it was signed for."""
        self.assertEqual(self.verify(self.encode(TOPIC), "topic"), "shop")
        self.assertEqual(self.verify(self.encode(EVERYBODY), "fanout"), "shop")
        self.refused("signed for the topic 'stock'", self.encode(TOPIC), sent_to="fanout")
        self.refused("signed for the fanout 'stock'", self.encode(EVERYBODY), sent_to="topic")
        self.refused("signed for the server 'stock.h1'", self.encode(), target=Target("stock", "h2"))
        self.refused("signed for the topic 'till'", self.encode(Target("till")), sent_to="topic")

    def test_age(self) -> None:
        """A request that was signed too long ago, or in the future, is refused."""
        message = self.encode()
        for offset, problem in ((300.0, ""), (-300.0, ""), (301.0, "signed 301 s ago"), (-301.0, "301 s ahead of")):
            self.now = 1_000_000.0 + offset
            if problem:
                self.refused(problem, message)
            else:
                self.assertEqual(self.verify(message), "shop")

    def test_nonsense(self) -> None:
        """Fields of wrong types are refused, even if a known caller signed them."""
        self.assertEqual(self.verify(self.forged()), "shop")
        for changes in ({"time": "now"}, {"time": None}, {"topic": 7}, {"server": []}, {"fanout": 1}):
            self.refused("wrong types", self.forged(**changes))
        self.refused("the limit, rpc_signature_max_age", self.forged(time=float("nan")))
