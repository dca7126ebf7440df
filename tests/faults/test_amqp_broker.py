"""A broker that is killed, frozen, or short of memory."""

from math import inf

import pytest
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from novasvc.errors import (
    BrokerBlockedError,
    BrokerError,
    RPCError,
    RPCTimeoutError,
    TransportFullError,
    UnconfirmedError,
)
from novasvc.rpc.target import Target
from novasvc.transport.amqp.send_buffer import MAX_MESSAGES
from tests.faults.amqp_rig import CONTEXT, TOPIC, AMQPCase, Diary
from tests.servers import Broker, fragile_broker

BACK_WITHIN = 3.0
"""Seconds after the broker is ready in which all is as it was."""


class FragileCase(AMQPCase):
    def choose_broker(self) -> Broker:
        return fragile_broker()


@pytest.mark.slow
@pytest.mark.timeout(120)
class KilledTests(FragileCase):
    async def test_killed(self) -> None:
        """After kill -9 and a restart all is back within 3 s, idempotent calls survive, and each other one ends."""
        server = await self.serve(await self.connect(operation_timeout=60.0))
        lasting_options = {"durable_queues": True, "exchange": "lasting", "operation_timeout": 60.0}
        lasting_diary, lasting_transport = Diary(), await self.connect(**lasting_options)
        lasting_server = await self.serve(
            await self.connect(**lasting_options), "lasting", concurrency=2, diary=lasting_diary
        )
        client = await self.client(patience=40.0)
        lasting = await self.client(lasting_transport, "lasting", patience=40.0)

        begun = [client.call(CONTEXT, "hang", what=n) for n in range(10)]
        begun_again = [client.call(CONTEXT, "hang_again", what=n) for n in range(10, 20)]
        queued = [lasting.call(CONTEXT, "hang_again", what=n) for n in range(10)]
        await self.until(lambda: len(self.diary.hanging) == 20 and len(lasting_diary.hanging) == 2)
        await self.until(lambda: not len(lasting_transport._publisher))  # the broker has answered for all

        self.broker.kill()
        await self.until(lambda: not server.live and not lasting_server.live, 1.0)
        self.diary.let_go(10)  # their replies have to wait for the broker
        self.broker.start()
        await deferToThread(self.broker.wait_ready)
        ready = reactor.seconds()
        await self.until(lambda: server.live and lasting_server.live)
        await self.assert_comes_back(client)
        self.assertLess(reactor.seconds() - ready, BACK_WITHIN)

        self.diary.let_go()
        self.assertEqual(await self.outcomes(begun), list(range(10)))
        self.assertEqual(await self.outcomes(begun_again), list(range(10, 20)))
        while not all(call.called for call in queued):
            lasting_diary.let_go()
            await self.until(lambda: lasting_diary.hanging or all(call.called for call in queued))
        self.assertEqual(await self.outcomes(queued), list(range(10)))
        # Nothing ran twice here; assert_comes_back may have called more than once.
        self.assertEqual(sorted(what for what in self.diary.calls if what != "back"), list(range(20)))
        await self.until(lambda: len(self.said("was restored")) == 8)  # some connections nobody here has waited for
        self.assertLessEqual(len(self.said("is lost")), 3 * 8)  # each connection says each reason once


class FrozenTests(FragileCase):
    HEARTBEAT = 1.0

    async def test_frozen(self) -> None:
        """A broker that stands still is noticed within two heartbeats; nothing is taken for sent meanwhile."""
        options = {"heartbeat": self.HEARTBEAT, "operation_timeout": 3.0}
        transport = await self.connect(**options)
        server = await self.serve(transport)
        client = await self.client(transport)
        await self.assert_serves(client)
        self.broker.freeze()
        self.addCleanup(self.broker.thaw)
        casts = [client.cast(CONTEXT, "note", what=n) for n in range(10)]
        noticed = await self.until(lambda: not server.live)
        await self.until(lambda: transport.connections[0].state not in {"ready", "blocked"}, 1.0)
        self.assertLess(noticed, 2 * self.HEARTBEAT + 1.0)  # the socket's last bytes, and a busy machine
        self.assertTrue(all(isinstance(outcome, RPCError) for outcome in await self.outcomes(casts)))
        self.broker.thaw()
        await self.until(lambda: server.live)
        await self.assert_comes_back(client)


class AlarmTests(FragileCase):
    async def test_memory(self) -> None:
        """Without memory the broker takes no messages: senders hear why in time; consuming goes on."""
        serving = await self.connect()
        server = await self.serve(serving, concurrency=2)
        sending = await self.connect(operation_timeout=1.0)
        client = await self.client(sending)
        for number in range(20):
            await client.cast(CONTEXT, "hang", what=number)
        await self.until(lambda: len(self.diary.hanging) == 2)
        with self.broker.memory_alarm():
            first = client.cast(CONTEXT, "note")  # the broker says now that it blocks
            await self.until(lambda: sending.connections[0].state == "blocked")
            begun = reactor.seconds()
            error = await self.assertFailure(client.cast(CONTEXT, "note"), BrokerBlockedError)
            self.assertLess(reactor.seconds() - begun, 2.0)
            self.assertIn("memory", str(error))
            short = sending.send(Target(TOPIC), b"{}", 0.2, False)
            await self.assertFailure(short, BrokerError, UnconfirmedError)
            await self.assertFailure(first, BrokerError, UnconfirmedError)
            while len(self.diary.calls) < 20:
                self.diary.let_go()
                await self.until(lambda: self.diary.hanging)
            self.diary.let_go()
        self.assertTrue(server.live)
        await self.assert_comes_back(client)

    async def test_given_up(self) -> None:
        """A call that a broker in alarm did not take says so, and does not run when the alarm is over."""
        await self.serve()
        transport = await self.connect()
        client = await self.client(transport, patience=1.5)
        with self.broker.memory_alarm():
            error = await self.assertFailure(client.call(CONTEXT, "note", what="late"), BrokerBlockedError)
            self.assertIn("low on memory", str(error))
            self.assertEqual(transport.connections[0].state, "blocked")
        await self.assert_comes_back(client)
        self.assertNotIn("late", self.diary.calls)

    async def test_given_up_when_written(self) -> None:
        """Nor does one that was written before the broker said so: its error says that it is not confirmed."""
        await self.serve()
        transport = await self.connect()
        transport._publisher._flow_check_age = inf  # as that of a busy sender, in the moment in which the alarm begins
        client = await self.client(transport, patience=1.5)
        with self.broker.memory_alarm():
            error = await self.assertFailure(client.call(CONTEXT, "note", what="late"), RPCTimeoutError)
            self.assertIn("low on memory", error.unconfirmed)
            ran = [*self.diary.calls]  # the broker may have taken it a moment before its alarm
            await self.until(lambda: self.said("to discard messages that the broker had not read"))
        await self.assert_comes_back(client)
        self.assertNotIn("late", self.diary.calls[len(ran) :])

    async def test_bounds(self) -> None:
        """What waits for a broker without memory is bounded, and is sent when it has some again."""
        sending = await self.connect(operation_timeout=20.0)
        await self.serve()
        client = await self.client(sending)
        with self.broker.memory_alarm():
            casts = [client.cast(CONTEXT, "note", what="first")]
            await self.until(lambda: sending.connections[0].state == "blocked")
            while not casts[-1].called:
                self.assertLess(len(casts), 20_000)
                casts.append(client.cast(CONTEXT, "note"))
            refused = await self.assertFailure(casts.pop(), TransportFullError)
            self.assertIn(f"full with {MAX_MESSAGES} messages", str(refused))
            # The broker blocks only when it reads a message: that one was sent, or waits as well.
            self.assertIn(len(casts), {MAX_MESSAGES, MAX_MESSAGES + 1})
        self.assertEqual(set(await self.outcomes(casts)), {None})
        await self.until(lambda: len(self.diary.calls) == len(casts))
