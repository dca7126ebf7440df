"""Tests for novasvc.rpc.resend."""

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.context import RequestContext
from novasvc.errors import BrokerUnavailableError, TransportFullError, UnconfirmedError, UndeliverableError
from novasvc.rpc.events.emitter import EventEmitter
from novasvc.rpc.resend import MAX_RESENDS, send_until_confirmed
from novasvc.telemetry import metrics


class ResendTests(SynchronousTestCase):
    """Messages that a broker confirms after some attempts."""

    def setUp(self) -> None:
        self.sent = 0
        self.confirms: list[Deferred[None]] = []

    def send(self, *_: object) -> Deferred[None]:
        self.sent += 1
        return self.confirms.pop(0) if self.confirms else fail(UnconfirmedError("t", "lost"))

    publish = send  # of a transport

    def test_again(self) -> None:
        """An unconfirmed message is sent again until it is confirmed."""
        self.confirms = [fail(UnconfirmedError("t", "lost")), succeed(None)]
        self.successResultOf(Deferred.fromCoroutine(send_until_confirmed(self.send)))
        self.assertEqual(self.sent, 2)

    def test_bounded(self) -> None:
        """It is sent MAX_RESENDS times more, and then fails."""
        self.failureResultOf(Deferred.fromCoroutine(send_until_confirmed(self.send)), UnconfirmedError)
        self.assertEqual(self.sent, 1 + MAX_RESENDS)

    def test_other_errors(self) -> None:
        """A message that failed in another way is not sent again."""
        self.confirms = [fail(TransportFullError("t", 1))]
        self.failureResultOf(Deferred.fromCoroutine(send_until_confirmed(self.send)), TransportFullError)
        self.assertEqual(self.sent, 1)

    def test_not_sent_again(self) -> None:
        """If it cannot be sent again, the error says why, and that the first copy may have arrived."""
        self.confirms = [fail(UnconfirmedError("t", "lost")), fail(BrokerUnavailableError("amqp://one", "refused"))]
        error = self.failureResultOf(Deferred.fromCoroutine(send_until_confirmed(self.send)), UnconfirmedError).value
        self.assertIn("message to t: lost; it could not be sent again: broker amqp://one: refused", str(error))

    def test_unroutable(self) -> None:
        """Nor does it hide that the first copy may have arrived if no queue is bound for the second one."""
        self.confirms = [fail(UnconfirmedError("t", "lost")), fail(UndeliverableError("t"))]
        error = self.failureResultOf(Deferred.fromCoroutine(send_until_confirmed(self.send)), UnconfirmedError).value
        self.assertIn("message to t: lost; it could not be sent again: ", str(error))
        self.confirms = [fail(UndeliverableError("t"))]
        self.failureResultOf(Deferred.fromCoroutine(send_until_confirmed(self.send)), UndeliverableError)

    def test_unrouted(self) -> None:
        """An event without subscribers is dropped, also if its first copy was not confirmed."""
        before = metrics.events_emitted.at("unrouted").value
        self.confirms = [fail(UnconfirmedError("t", "lost")), fail(UndeliverableError("t"))]
        emitter = EventEmitter(self, publisher_id="stock.h1", clock=Clock())
        self.successResultOf(emitter.emit(RequestContext.admin(), "order.placed"))
        self.assertEqual(metrics.events_emitted.at("unrouted").value, before + 1)

    def test_events(self) -> None:
        """An event is sent again, too, and counted."""
        before = metrics.resent.at().value
        self.confirms = [fail(UnconfirmedError("t", "lost")), succeed(None)]
        emitter = EventEmitter(self, publisher_id="stock.h1", clock=Clock())
        self.successResultOf(emitter.emit(RequestContext.admin(), "order.placed"))
        self.assertEqual((self.sent, metrics.resent.at().value - before), (2, 1))
