"""Tests for the broker's reply codes: which error each becomes, and when it is retried."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import (
    BrokerError,
    BrokerFailedError,
    BrokerLimitError,
    BrokerRefusedError,
    BrokerUnavailableError,
    DeclarationDeniedError,
    DeclarationMismatchError,
)
from novasvc.rpc.target import Target
from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.amqp.reply_codes import broker_error
from tests.support.amqp_rig import DENIED
from tests.unit.transport.amqp.test_connection import ConnectionCase
from tests.unit.transport.amqp.test_transport import TransportCase

QUEUE = "queue 'a' in vhost '/'"

# Reply texts of RabbitMQ 3.10 to 4.3, without their variable parts.
REASONS = (
    (0, "the socket is closed", BrokerUnavailableError),
    (311, "CONTENT_TOO_LARGE", BrokerError),
    (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", BrokerUnavailableError),
    (402, "INVALID_PATH", BrokerRefusedError),
    (403, "ACCESS_REFUSED - configure access to queue 'a' in vhost '/' refused", BrokerRefusedError),
    (404, f"NOT_FOUND - no {QUEUE}", BrokerError),
    (404, f"NOT_FOUND - home node 'n' of durable {QUEUE} is down or inaccessible", BrokerUnavailableError),
    (405, f"RESOURCE_LOCKED - cannot obtain exclusive access to locked {QUEUE}", BrokerError),
    (406, f"PRECONDITION_FAILED - inequivalent arg 'durable' for {QUEUE}", DeclarationMismatchError),
    (406, "PRECONDITION_FAILED - cannot declare queue 'a': queue limit in vhost '/' (1) is reached", BrokerLimitError),
    (406, "PRECONDITION_FAILED - message size 17 is larger than configured max size 16", BrokerError),
    (501, "FRAME_ERROR", BrokerFailedError),
    (503, "COMMAND_INVALID - unknown exchange type 'x'", BrokerFailedError),
    (504, "CHANNEL_ERROR - expected 'channel.open'", BrokerFailedError),
    (505, "UNEXPECTED_FRAME - expected content header", BrokerFailedError),
    (506, "RESOURCE_ERROR - failed to deliver message: timeout", BrokerFailedError),
    (530, "NOT_ALLOWED - vhost v not found", BrokerRefusedError),
    (530, "NOT_ALLOWED - access to vhost 'v' refused for user 'u': connection limit (0) is reached", BrokerLimitError),
    (530, "NOT_ALLOWED - connection refused: node connection limit (1) is reached", BrokerLimitError),
    (530, "NOT_ALLOWED - number of channels opened (3) has reached the negotiated channel_max (3)", BrokerLimitError),
    (540, "NOT_IMPLEMENTED - immediate=true", BrokerFailedError),
    (541, "INTERNAL_ERROR - access to vhost 'v' refused for user 'u': vhost 'v' is down", BrokerFailedError),
    (541, "INTERNAL_ERROR - Could not add binding due to timeout", BrokerFailedError),
    (541, "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated. By default", DeclarationDeniedError),
    (541, "INTERNAL_ERROR - Feature `queue_master_locator` is deprecated. By default", DeclarationDeniedError),
)


class ReplyCodeTests(SynchronousTestCase):
    def test_kinds(self) -> None:
        """Each code, and each reply text where a code has several meanings, becomes its error."""
        for code, text, kind in REASONS:
            error = broker_error("amqp://one", AMQPClosedError(text, code))
            self.assertIs(type(error), kind, text)
            self.assertTrue(str(error).endswith(kind.remedy), str(error))
            if kind is not DeclarationDeniedError:
                self.assertIn(text, str(error))

    def test_denied(self) -> None:
        """A denied feature is named in one line, with the settings that help."""
        text = str(broker_error("amqp://one", AMQPClosedError(" ".join(DENIED.split()), 541)))
        for part in ("541", "transient_nonexcl_queues", "amqp_durable_queues", "rabbit_quorum_queue"):
            self.assertIn(part, text)
        self.assertNotIn("check that the broker is running", text)


class RetryTests(ConnectionCase):
    """Tests for the backoff after the broker closed the connection with a code."""

    def setUp(self) -> None:
        super().setUp()
        self.opened()

    def test_failed(self) -> None:
        """An internal error is retried soon at first, and with the slow backoff if it persists."""
        self.broker.closing["connection.open"] = (541, "INTERNAL_ERROR - vhost is down")
        self.broker.links[0].lose()
        self.wait(30, step=0.5)
        self.assertEqual([kind for kind, _ in self.rounds[:6]], ["away"] * 6)
        self.assertEqual({kind for kind, _ in self.rounds[7:]}, {"refused"})
        self.assertIsInstance(self.connection.last_error, BrokerFailedError)
        self.assertIn("it reported an error: 541", str(self.connection.last_error))

    def test_limit(self) -> None:
        """A reached connection limit is retried with the slow backoff, and named."""
        self.broker.closing["connection.open"] = (530, "NOT_ALLOWED - connection limit (1) is reached")
        self.broker.links[0].lose()
        self.wait(2)
        self.assertEqual(self.rounds[-1][0], "refused")
        self.assertIsInstance(self.connection.last_error, BrokerLimitError)
        self.assertIn("raise the limit", str(self.connection.last_error))


class DeniedTests(TransportCase):
    """Tests for a broker that denies queues that are neither durable nor exclusive."""

    def setUp(self) -> None:
        super().setUp()
        self.broker.denying = True

    def declared(self) -> list[tuple[str, bool]]:
        """Return the queues declared on the newest connection, and whether they are durable."""
        said = self.link.all("queue.declare")
        return [(one.args["queue"].split("_")[0], bool(one.args["durable"])) for one in said]

    def test_replies(self) -> None:
        """A reply queue is then durable, expires as before, and exists without a pause."""
        self.started(self.amqp.open_replies(self.got.append))
        self.settle()
        self.assertEqual(self.declared(), [("reply", True)])
        self.assertEqual(self.link.last("queue.declare").args["arguments"], {"x-expires": 1_800_000})
        self.assertEqual(len([line for line in self.log if "declared durable" in line]), 1)
        self.assertEqual([line for line in self.log if "is lost" in line], [])

    def test_shared(self) -> None:
        """A denied shared queue fails, and the error names the settings."""
        error = self.failed(self.amqp.listen(Target("compute"), self.got.append, 1), DeclarationDeniedError)
        self.assertIn("amqp_durable_queues", str(error))

    def test_shared_durable(self) -> None:
        """With durable request queues a server listens, and its fanout queue is durable, too."""
        self.done(self.amqp.close())
        self.amqp = self.transport(heartbeat=0.0, durable_queues=True)
        listener = self.started(self.amqp.listen(Target("compute"), self.got.append, 1))
        self.settle()
        self.assertTrue(self.successResultOf(listener).live)
        self.assertEqual(self.declared(), [("compute", True), ("compute", True)])

    def test_side_by_side(self) -> None:
        """Concurrent listens and reply queues are established after one reconnect."""
        boxes = [self.started(self.amqp.open_replies(self.got.append)) for _ in range(3)]
        self.settle()
        for box in boxes:
            self.successResultOf(box)
        consuming = [link for link in self.broker.links if "consuming" in link.name]
        self.assertEqual(len(consuming), 2)

    def test_upgraded(self) -> None:
        """A broker that denies them after a restart gets durable queues."""
        self.broker.denying = False
        self.done(self.amqp.open_replies(self.got.append))
        self.broker.denying = True
        self.link.lose()
        self.wait(3)
        self.assertEqual(self.declared(), [("reply", True)])
        self.assertIsNone(self.amqp.problem())

    def test_not_again(self) -> None:
        """If the connection does not come back, the callers fail within the timeout."""
        self.broker.denying = False
        self.done(self.amqp.open_replies(self.got.append))
        self.broker.denying = True
        self.broker.unanswered.add("connection.open")
        waiting = self.started(self.amqp.open_replies(self.got.append))
        self.settle()
        self.wait(11)
        self.failed(waiting, BrokerUnavailableError)
