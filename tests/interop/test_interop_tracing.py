from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.middleware.tracing import Tracing
from novasvc.rpc.target import Target
from tests.interop.peer import InteropCase


class Relay:
    """Calls the peer, when the peer calls it."""

    client: rpc.Client

    @rpc.expose
    def relay(self, context: RequestContext, value: Any) -> Deferred[Any]:
        return self.client.call(context, "echo", value=value)


class TraceTests(InteropCase):
    async def test_one_trace(self) -> None:
        """A call of the peer's, our method, our call and the peer's method are spans of one trace, named alike."""
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracing = Tracing(provider)
        relay, theirs = Relay(), f"{self.topic}-peer"
        await self.serve(None, self.topic, "ours", diary=relay, middleware=[tracing])
        relay.client = rpc.Client(
            await self.connect(), clock=reactor, timeout=20.0, target=Target(theirs), middleware=[tracing]
        )
        self.addCleanup(relay.client.close)
        peer = await self.peer()
        await self.peer_serves(peer, theirs)
        await self.process.ask("trace")
        self.assertEqual(await peer.call("relay", context={"request_id": "req-1"}, value=7), 7)
        await self.until(lambda: len(exporter.get_finished_spans()) == 2)
        found = {span["name"]: span for span in await self.process.ask("spans")}
        ours = {span.name: span for span in exporter.get_finished_spans()}
        chain = [
            found[f"{self.topic}.relay"]["context"],
            _context(ours["relay receive"]),
            _context(ours[f"{theirs}.echo"]),
            found["echo receive"]["context"],
        ]
        self.assertEqual(len({context["trace_id"] for context in chain}), 1)
        parents = [
            _hex(ours["relay receive"].parent.span_id),
            _hex(ours[f"{theirs}.echo"].parent.span_id),
            found["echo receive"]["parent_id"],
        ]
        self.assertEqual(parents, [context["span_id"] for context in chain[:-1]])
        # The same attributes on both sides.
        for one, other in (
            (found[f"{self.topic}.relay"], ours[f"{theirs}.echo"]),
            (found["echo receive"], ours["relay receive"]),
        ):
            self.assertEqual(set(one["attributes"]), set(other.attributes))
            self.assertEqual(one["kind"], str(other.kind))
            for name in ("messaging.system", "messaging.operation", "openstack.request_id"):
                self.assertEqual(one["attributes"][name], other.attributes[name])


def _hex(number: int) -> str:
    return f"0x{number:016x}"


def _context(span: Any) -> dict[str, str]:
    return {"trace_id": f"0x{span.context.trace_id:032x}", "span_id": _hex(span.context.span_id)}
