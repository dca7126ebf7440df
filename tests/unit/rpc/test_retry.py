"""Tests for novasvc.rpc.retry: repeated calls of idempotent methods."""

import dataclasses
import random
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import (
    BrokerUnavailableError,
    InvalidArgumentsError,
    RPCTimeoutError,
    TransportClosedError,
    UndeliverableError,
)
from novasvc.rpc.retry import call_with_retries
from novasvc.telemetry import metrics
from tests.support.rpc_rig import CONTEXT, Diary, RPCCase


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class Shaky(Diary):
    """Fails as often as it is told."""

    failures = 0

    @rpc.expose(idempotent=True, expected=(ConnectionError, KeyError))
    def shaky(self, context: RequestContext, error: str = "ConnectionError") -> int:
        self.calls.append(error)
        if len(self.calls) <= self.failures:
            raise {"ConnectionError": ConnectionError, "KeyError": KeyError}[error]("no")
        return len(self.calls)


class RetryTests(RPCCase):
    diary: Shaky

    def make_endpoint(self) -> Shaky:
        return Shaky()

    def retrying(self, client: rpc.Client | None = None, **given: Any) -> rpc.Client:
        given = {"on": (ConnectionError,), "backoff": float, **given}
        return (client or self.client).prepare(idempotent=True, retry=rpc.Retry(**given))

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.clock.advance(1)
            for _ in range(4):
                self.clock.advance(0)

    def begin(self, client: rpc.Client, method: str = "shaky", **args: Any) -> Deferred[Any]:
        calling = client.call(CONTEXT, method, **args)
        for _ in range(4):
            self.clock.advance(0)
        return calling

    def test_succeeds(self) -> None:
        """A call is repeated, after the backoff's pauses, until it succeeds."""
        self.diary.failures = 2
        calling = self.begin(self.retrying(attempts=5))
        self.assertEqual(len(self.diary.calls), 1)
        self.advance(1)
        self.assertEqual(len(self.diary.calls), 2)
        self.advance(1)
        self.assertEqual(len(self.diary.calls), 2)
        self.advance(1)
        self.assertEqual(self.successResultOf(calling), 3)
        self.assertEqual(metrics.retried.at("compute", "shaky").value, 2)

    def test_attempts(self) -> None:
        """After the last attempt its error is raised, and says how many there were."""
        self.diary.failures = 9
        calling = self.begin(self.retrying(attempts=3))
        self.advance(10)
        error = self.failureResultOf(calling, ConnectionError).value
        self.assertEqual(len(self.diary.calls), 3)
        self.assertIn("attempt 3 of 3", error.__notes__)

    def test_frozen(self) -> None:
        """An error of a frozen class is raised as it is, with the note."""
        retry = rpc.Retry(attempts=1, on=(FrozenError,))
        calling = call_with_retries(retry, self.clock, None, lambda _: fail(FrozenError(1)), ("t", "m"))
        error: Any = self.failureResultOf(Deferred.fromCoroutine(calling), FrozenError).value
        self.assertEqual(error.__notes__, ["attempt 1 of 1"])

    def test_other_errors(self) -> None:
        """An error that is not among those to repeat is raised at once."""
        self.diary.failures = 9
        self.failureResultOf(self.begin(self.retrying(), error="KeyError"), KeyError)
        self.failureResultOf(self.begin(self.retrying(), nothing=1), InvalidArgumentsError)
        self.assertEqual(len(self.diary.calls), 1)

    def test_deadline(self) -> None:
        """No attempt and no pause passes the caller's deadline: the last error is raised before a pause that would."""
        self.diary.failures = 9
        calling = self.begin(self.retrying(self.client.prepare(timeout=4), attempts=9))
        self.advance(3)
        error = self.failureResultOf(calling, ConnectionError).value
        self.assertEqual(len(self.diary.calls), 3)  # at 0, 1 and 3 s; the next would be at 6 s
        self.assertIn("attempt 3 of 9; no time is left for another one", error.__notes__)

    def test_deadline_of_context(self) -> None:
        """The context's deadline holds for all attempts together, as for a single call."""
        context = RequestContext(deadline=self.clock.seconds() + 2)
        calling = self.retrying(attempts=9, on=(RPCTimeoutError,)).call(context, "hang")
        self.advance(2)
        self.failureResultOf(calling, RPCTimeoutError)

    def test_attempt_timeout(self) -> None:
        """With a timeout for each attempt a call without a reply is repeated within the whole timeout."""
        client = self.retrying(attempts=3, timeout=5, on=(RPCTimeoutError,))
        calling = self.begin(client, "hang_again")
        self.advance(7)
        self.assertEqual(len(self.diary.calls), 2)
        self.diary.hanging[1].callback("second")
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(calling), "second")

    def test_defaults(self) -> None:
        """By default missing services, replies and brokers are worth another attempt, within the timeout."""
        retry = rpc.Retry()
        self.assertTrue({UndeliverableError, RPCTimeoutError, BrokerUnavailableError} <= set(retry.on))
        self.assertFalse({InvalidArgumentsError, TransportClosedError} & set(retry.on))
        nobody = self.client.prepare(topic="nobody", server=None, idempotent=True, retry=retry)
        calling = self.begin(nobody, "note")
        self.assertNoResult(calling)
        self.advance(2)
        self.failureResultOf(calling, UndeliverableError)

    def test_jitter(self) -> None:
        """The default backoff is exponential, with jitter from the given source."""
        one, other = (rpc.Retry(random_source=random.Random(7)).backoff for _ in range(2))
        pauses = [one(attempt) for attempt in (1, 2, 3, 20)]
        self.assertEqual(pauses, [other(attempt) for attempt in (1, 2, 3, 20)])
        for pause, bound in zip(pauses, (0.1, 0.2, 0.4, 10.0), strict=True):
            self.assertTrue(bound / 2 <= pause <= bound, pauses)

    def test_cancelled(self) -> None:
        """Cancelling the call cancels the attempt under way, or ends the pause."""
        calling = self.begin(self.retrying(), "hang_again")
        calling.cancel()
        self.failureResultOf(calling, CancelledError)
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual((self.diary.cancelled, self.server.in_flight), (1, 0))
        self.diary.failures = 9
        calling = self.begin(self.retrying())
        calling.cancel()
        self.failureResultOf(calling, CancelledError)
        calls = len(self.diary.calls)
        self.advance(20)
        self.assertEqual(len(self.diary.calls), calls)

    def test_final(self) -> None:
        """A cancelled call, and one of a closed client, is not repeated, even if every error is to be."""
        calling = self.begin(self.retrying(on=(Exception,)), "hang_again")
        calling.cancel()
        self.failureResultOf(calling, CancelledError)
        calling = self.begin(self.retrying(on=(Exception,)), "hang_again")
        self.successResultOf(self.client.close())
        self.failureResultOf(calling, TransportClosedError)
        self.assertEqual(len(self.diary.calls), 2)

    def test_not_idempotent(self) -> None:
        """Retries are refused for calls that are not declared idempotent, however the client is made."""
        for prepare in (
            lambda: self.client.prepare(retry=rpc.Retry()),
            lambda: self.retrying().prepare(idempotent=False),
            lambda: rpc.Client(self.transport, clock=self.clock, retry=rpc.Retry()),
        ):
            error = self.assertRaises(ValueError, prepare)
            self.assertIn("not declared idempotent; give idempotent=True", str(error))
        self.retrying().prepare(idempotent=False, retry=None)

    def test_invalid(self) -> None:
        """Parameters that cannot be meant are refused, with the value."""
        for given in (
            {"attempts": 0},
            {"attempts": True},
            {"attempts": 2.5},
            {"timeout": 0},
            {"on": ()},
            {"on": [KeyError]},
            {"on": (3,)},
        ):
            error = self.assertRaises(ValueError, rpc.Retry, **given)
            ((name, value),) = given.items()
            self.assertIn(f"{name} is {value!r}", str(error))

    def test_target(self) -> None:
        """A client without a topic fails as it does without retries."""
        client = rpc.Client(self.transport, clock=self.clock, idempotent=True, retry=rpc.Retry())
        self.assertIn("no topic", str(self.failureResultOf(client.call(CONTEXT, "note")).value))
        self.assertEqual(self.retrying().prepare(topic="other").pending, 0)
