"""A broker that answers, and will not have us, or not as we want it."""

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import LogLevel

from novasvc.errors import BrokerError, BrokerRefusedError, DeclarationMismatchError, UnconfirmedError
from novasvc.rpc.target import Target
from tests.faults.amqp_rig import CONTEXT, TOPIC, AMQPCase

PASSWORD = "pass-w0rd"  # in URLs as it is
OTHER = "0ther-pass"


class LoginTests(AMQPCase):
    def setUp(self) -> None:
        super().setUp()
        self.user = f"u-{self.vhost}"
        self.broker.add_user(self.user, PASSWORD)
        self.mine = self.broker.url(self.vhost, (self.user, PASSWORD))

    async def refused(self, url: str) -> str:
        error = await self.assertFailure(self.make_transport(url).open(), BrokerRefusedError)
        self.assert_secret(PASSWORD, OTHER)
        text = f"{error} {error!r}"
        self.assertNotIn(PASSWORD, text)
        self.assertNotIn(OTHER, text)
        return text

    async def test_password(self) -> None:
        """A wrong password, or a user that there is not, is called so, and is not shown."""
        self.broker.permit(self.user, self.vhost)
        text = await self.refused(self.broker.url(self.vhost, (self.user, OTHER)))
        self.assertIn(f"user {self.user!r}", text)
        self.assertIn("nobody-here", await self.refused(self.broker.url(self.vhost, ("nobody-here", OTHER))))

    async def test_vhost(self) -> None:
        """A virtual host that there is not, or that is not for the user, is named."""
        self.assertIn("virtual host 'no-such'", await self.refused(self.broker.url("no-such")))
        self.assertIn(f"virtual host {self.vhost!r}", await self.refused(self.mine))

    async def test_permission(self) -> None:
        """What the user may not do is named: declaring, consuming, sending."""
        self.broker.permit(self.user, self.vhost, configure="^$")
        self.assertIn("'nova'", await self.refused(self.mine))
        self.broker.permit(self.user, self.vhost, read="^(nova|compute_fanout.*)$")
        transport = await self.connect(self.mine)
        error = await self.assertFailure(transport.listen(Target(TOPIC), lambda delivery: None, 1), BrokerRefusedError)
        self.assertIn(f"'{TOPIC}'", str(error))
        self.broker.permit(self.user, self.vhost, write="^$")
        client = await self.client(await self.connect(self.mine))
        error = await self.assertFailure(client.cast(CONTEXT, "note"), BrokerRefusedError)
        self.assertIn("'nova'", str(error))

    async def test_revoked(self) -> None:
        """Who is refused after a while tries slowly, says it once, and is back when an operator has mended it."""
        self.broker.permit(self.user, self.vhost)
        server = await self.serve(await self.connect(self.mine))
        self.broker.eval(f'rabbit_auth_backend_internal:change_password(<<"{self.user}">>, <<"{OTHER}">>, <<"t">>).')
        self.broker.close_connections(self.vhost)
        await self.until(lambda: len(self.said("login refused for user")) == 2)  # one of each connection
        self.broker.eval(f'rabbit_auth_backend_internal:change_password(<<"{self.user}">>, <<"{PASSWORD}">>, <<"t">>).')
        await self.until(lambda: server.live, 15.0)
        await self.assert_serves(await self.client())
        self.assertEqual(len(self.said("login refused for user")), 2)
        self.assert_secret(PASSWORD, OTHER)


class MismatchTests(AMQPCase):
    async def test_exchange(self) -> None:
        """An exchange that is declared otherwise is named, with both values."""
        self.broker.declare_exchange(self.vhost, "nova", durable=True)
        error = await self.assertFailure(self.make_transport().open(), DeclarationMismatchError)
        for part in ("'durable'", "'nova'", "received 'false'", "current is 'true'"):
            self.assertIn(part, str(error))

    async def test_queue(self) -> None:
        """A queue that is declared otherwise is named, with both values; the connection's others go on."""
        transport = await self.connect()
        await self.serve(transport, "other")
        other = await self.client(transport, "other")
        self.broker.declare_queue(self.vhost, TOPIC, durable=True)
        error = await self.assertFailure(Deferred.fromCoroutine(self.serve(transport)), DeclarationMismatchError)
        for part in ("'durable'", f"'{TOPIC}'", "received 'false'", "current is 'true'"):
            self.assertIn(part, str(error))
        await self.assert_serves(other)
        self.broker.delete_queue(self.vhost, TOPIC)
        await self.serve(transport)
        await self.assert_serves(await self.client(transport))

    async def test_queue_changed(self) -> None:
        """A queue that is declared otherwise under us is tried again slowly and told once; others go on."""
        transport = await self.connect()
        server = await self.serve(transport)
        await self.serve(transport, "other")
        other = await self.client(transport, "other")
        self.change_queue()
        await self.until(lambda: self.said("received 'false'", LogLevel.warn))
        self.assertFalse(server.live)
        await self.assert_serves(other)
        self.broker.delete_queue(self.vhost, TOPIC)
        await self.until(lambda: server.live, 30.0)  # pauses of up to 4 s, on a machine that may be busy
        await self.assert_serves(await self.client(transport))
        self.assertEqual(len(self.said("received 'false'", LogLevel.warn)), 1)

    async def test_reconnected(self) -> None:
        """A queue that is declared otherwise when we reconnect does not keep the others away."""
        transport = await self.connect()
        server = await self.serve(transport)
        await self.serve(transport, "other")
        other = await self.client(transport, "other")
        await self.assert_serves(other)
        self.broker.close_connections(self.vhost)
        self.change_queue()
        await self.until(lambda: self.said("received 'false'", LogLevel.warn))
        await self.assert_comes_back(other)
        self.assertFalse(server.live)
        self.broker.delete_queue(self.vhost, TOPIC)
        await self.until(lambda: server.live)

    def change_queue(self) -> None:
        """Put a durable queue in the place of ours, before anybody can declare it."""
        resource = f'rabbit_misc:r(<<"{self.vhost}">>, queue, <<"{TOPIC}">>)'
        self.broker.eval(
            f"{{ok, Q}} = rabbit_amqqueue:lookup({resource}),"
            ' {ok, _} = rabbit_amqqueue:delete(Q, false, false, <<"test">>),'
            f' {{new, _}} = rabbit_amqqueue:declare({resource}, true, false, [], none, <<"test">>), ok.'
        )


class ClosedChannelTests(AMQPCase):
    async def test_queue_deleted(self) -> None:
        """A queue that is deleted under us is declared and consumed again in less than 5 s."""
        transport = await self.connect()
        server = await self.serve(transport)
        client = await self.client(transport)
        await self.assert_serves(client)
        for queue in (TOPIC, f"{TOPIC}.h1", *(q for q in self.broker.queues(self.vhost) if "_fanout_" in q)):
            self.broker.delete_queue(self.vhost, queue)
            await self.until(lambda: not server.live)
            self.assertLess(await self.until(lambda: server.live), 5.0)
            await self.assert_serves(client)
        self.assertEqual(self.broker.connections(self.vhost), 2)
        self.assertEqual(transport.connections[1].reconnects, 0)

    async def test_reply_queue_deleted(self) -> None:
        """A client whose queue is deleted has it again in less than 5 s."""
        transport = await self.connect()
        await self.serve(transport)
        client = await self.client(transport)
        await self.assert_serves(client)
        (queue,) = (queue for queue in self.broker.queues(self.vhost) if queue.startswith("reply_"))
        self.broker.delete_queue(self.vhost, queue)
        self.assertLess(await self.assert_comes_back(client), 5.0)

    async def test_exchange_deleted(self) -> None:
        """A message to an exchange that was deleted fails by its name, and the exchange is declared again."""
        transport = await self.connect()
        server = await self.serve(transport)
        client = await self.client(transport)
        await self.assert_serves(client)
        self.broker.delete_exchange(self.vhost, "nova")
        error = await self.assertFailure(client.cast(CONTEXT, "note"), BrokerError, UnconfirmedError)
        self.assertIn("nova", str(error))
        await client.cast(CONTEXT, "note")
        self.assertTrue(server.live)
        self.assertEqual(transport.connections[0].reconnects, 0)

    async def test_acknowledged_too_late(self) -> None:
        """A channel that the broker closes for a late acknowledgement is made again, and its limit kept then."""
        self.broker.eval(
            "application:set_env(rabbit, consumer_timeout, 500),"
            " application:set_env(rabbit, channel_tick_interval, 200)."
        )
        self.addCleanup(
            self.broker.eval,
            "application:set_env(rabbit, consumer_timeout, 1800000),"
            " application:set_env(rabbit, channel_tick_interval, 60000).",
        )
        # From 4.3 on only quorum queues have such a limit, and end the consumer, not the channel.
        cancels = self.broker.release >= (4, 3)
        transport = await self.connect(quorum_queue=cancels)
        server = await self.serve(transport)
        client = await self.client(transport)
        call = client.call(CONTEXT, "hang_again", what=1)
        if cancels:
            # It does not say how long the limit is, so this goes on until rabbit_consumer_timeout is set.
            await self.until(lambda: len(self.said("consumes again")) == 4)
            self.assertTrue(self.said("not acknowledged in time"))
        else:
            await self.until(lambda: self.said("consumes again"))
            self.assertTrue(self.said("timed out"))
            self.assertEqual(len(self.said(r"consumer_timeout is 0.5 s, not 1800(\.0)? s")), 1)
            await deferLater(reactor, 3.0)
            self.assertEqual(len(self.said("lost its channel")), 1)
        self.assertTrue(server.live)
        self.diary.let_go()
        self.assertEqual(await call, 1)
        self.assertEqual(self.diary.calls, [1])
        await self.until(lambda: not any(self.broker.queues(self.vhost).values()))
        await self.assert_serves(client)
        self.assertEqual(transport.connections[1].reconnects, 0)
