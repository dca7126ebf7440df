"""Tests for novasvc.transport.amqp.topology."""

from functools import partial
from typing import Any

from novasvc.rpc.target import Target
from novasvc.transport.amqp import BrokerOptions, topology
from tests.support.amqp_rig import AMQPCase


class DeclareTests(AMQPCase):
    """Tests for declarations; the defaults are those of OpenStack's services."""

    def declared(self, **options: Any) -> list[tuple[Any, ...]]:
        """Declare everything, and return the durable and auto-delete flags and the arguments of each in order."""
        chosen = BrokerOptions(**options)
        link = self.linked()
        one = self.channel()
        self.done(topology.declare_exchange(one, "nova", chosen))
        self.done(topology.declare_request_queue(one, "nova", "compute", chosen))
        self.done(topology.declare_fanout_queue(one, "compute", "compute_fanout_1", chosen))
        self.done(topology.declare_reply_queue(one, "reply_1", chosen))
        self.assertEqual(link.all("queue.bind")[0].args["exchange"], "nova")
        self.assertEqual(link.all("queue.bind")[1].args["exchange"], "compute_fanout")
        said = [said.args for said in link.seen if said.name.endswith(".declare")]
        self.assertEqual([args.get("type") for args in said], ["topic", None, "fanout", None, None])
        return [(args["durable"], args["auto_delete"], args["arguments"]) for args in said]

    def test_defaults(self) -> None:
        """By default nothing is durable, and reply and fanout queues expire half an hour after their last use."""
        transient = (False, False, {"x-expires": 1_800_000})
        self.assertEqual(
            self.declared(), [(False, False, {}), (False, False, {}), (False, True, {}), transient, transient]
        )

    def test_durable(self) -> None:
        """Durable request queues leave reply and fanout queues as they are."""
        first, second, *rest = self.declared(durable_queues=True, auto_delete=True)
        self.assertEqual((first, second), ((True, True, {}), (True, True, {})))
        self.assertEqual([durable for durable, _, _ in rest], [False] * 3)

    def test_never_expires(self) -> None:
        """With a TTL of 0 reply and fanout queues do not expire."""
        self.assertEqual(self.declared(transient_queues_ttl=0.0)[-1], (False, False, {}))

    def test_quorum(self) -> None:
        """Quorum queues are durable, and have the configured bounds."""
        bounds = {"quorum_delivery_limit": 3, "quorum_max_memory_length": 10, "quorum_max_memory_bytes": 20}
        exchange, requests, fanout, *transient = self.declared(quorum_queue=True, **bounds)
        arguments = {
            "x-queue-type": "quorum",
            "x-delivery-limit": 3,
            "x-max-in-memory-length": 10,
            "x-max-in-memory-bytes": 20,
        }
        self.assertEqual((exchange, requests), ((True, False, {}), (True, False, arguments)))
        self.assertEqual((fanout[0], transient[0][0]), (False, False))

    def test_transient_quorum(self) -> None:
        """Reply and fanout queues are quorum queues only if configured."""
        _, requests, fanout, *transient = self.declared(transient_quorum_queue=True)
        self.assertEqual((requests, fanout), ((False, False, {}), (True, True, {})))
        arguments = {"x-queue-type": "quorum", "x-expires": 1_800_000}
        self.assertEqual(transient, [(True, False, arguments)] * 2)


class NamesTests(AMQPCase):
    """Tests for the names of queues and exchanges."""

    def test_names(self) -> None:
        """Shared names follow OpenStack's services; private names are unique."""
        self.assertEqual(topology.request_address(Target("compute", "h1")), "compute.h1")
        self.assertEqual(topology.request_address(Target("compute")), "compute")
        self.assertEqual(topology.fanout_exchange("compute"), "compute_fanout")
        self.assertEqual(topology.cancellation_key(Target("compute")), "novasvc.cancel.compute")
        self.assertEqual(topology.cancellation_key(Target("compute", "h1")), "novasvc.cancel.compute.h1")
        long = Target("compute", "h" * 247)  # as long as the name of its queue may be
        self.assertEqual(topology.cancellation_key(long), "novasvc.cancel.compute")
        self.assertEqual(len(topology.cancellation_bindings("nova", long, "q")), 1)
        self.assertEqual(topology.quarantine_queue("compute"), "compute_quarantine")
        options = BrokerOptions()
        for make in (topology.new_reply_queue, partial(topology.new_fanout_queue, "compute")):
            self.assertEqual(len({make(options) for _ in range(100)}), 100)
