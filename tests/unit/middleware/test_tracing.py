import random
import sys
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import MiddlewareError
from novasvc.http.around import AroundRequests
from novasvc.middleware import Chain
from novasvc.middleware.tracing import Tracing
from novasvc.periodic import TaskRunner, periodic_task
from novasvc.rpc.events.declare import event_handlers
from tests.support.http_rig import Wire
from tests.support.rpc_rig import CONTEXT, TARGET, Diary, RPCCase
from tests.unit.rpc.events.test_declare import Stock

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class Traced(Diary):
    @rpc.expose(expected=(LookupError,))
    async def find(self, context: RequestContext) -> None:
        raise LookupError("no tea")

    @rpc.expose(namespace="laboratory")
    async def entries(self, context: RequestContext) -> Any:
        return context.extra


class TracingTests(RPCCase):
    def setUp(self) -> None:
        self.exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider)
        super().setUp()
        self.client = rpc.Client(self.make_transport(), clock=self.clock, target=TARGET, middleware=[self.tracing])

    def make_endpoint(self) -> Any:
        return Traced()

    def serve(self, **given: Any) -> rpc.Server:
        return super().serve(middleware=[self.tracing], **given)

    def spans(self) -> dict[str, Any]:
        """Return the spans by name."""
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def finish(self, calling: Deferred[Any]) -> Any:
        self.clock.pump([0] * 5)
        return self.successResultOf(calling)

    def test_call(self) -> None:
        """A call and its method are two spans of one trace, which the context carries."""
        client = self.client.prepare(namespace="laboratory")
        extra = self.finish(client.call(CONTEXT, "entries"))
        spans = self.spans()
        sent, received = spans["compute.entries"], spans["entries receive"]
        self.assertEqual(received.parent.span_id, sent.context.span_id)
        self.assertIn(f"{sent.context.trace_id:032x}", extra["traceparent"])
        self.assertEqual(
            dict(sent.attributes),
            {
                "messaging.system": "rabbitmq",
                "messaging.operation": "call",
                "messaging.destination.name": "compute",
                "rpc.method": "entries",
                "rpc.service": "laboratory",
                "openstack.request_id": "req-1",
            },
        )
        self.assertEqual(len(received.attributes["messaging.message.id"]), 32)
        self.assertEqual((sent.kind, received.kind), (trace.SpanKind.PRODUCER, trace.SpanKind.CONSUMER))

    def test_cast(self) -> None:
        """A cast is a span too, and its method has no message id."""
        self.finish(self.client.cast(CONTEXT, "note", what=1))
        spans = self.spans()
        self.assertEqual(spans["compute.note"].attributes["messaging.operation"], "cast")
        self.assertNotIn("messaging.message.id", spans["note receive"].attributes)
        self.assertEqual(spans["note receive"].parent.span_id, spans["compute.note"].context.span_id)

    def test_error(self) -> None:
        """An error is recorded in both spans, once."""
        calling = self.client.call(CONTEXT, "find")
        self.clock.pump([0] * 5)
        self.failureResultOf(calling, LookupError)
        for span in self.spans().values():
            self.assertEqual(span.status.status_code, trace.StatusCode.ERROR)
            self.assertEqual([event.name for event in span.events], ["exception"])

    def test_cancelled(self) -> None:
        """A call that is cancelled ends its span."""
        calling = self.client.call(CONTEXT, "hang")
        self.clock.pump([0] * 5)
        calling.cancel()
        self.failureResultOf(calling, CancelledError)
        self.assertIn("compute.hang", self.spans())
        self.diary.hanging[0].callback(None)

    def test_foreign_entries(self) -> None:
        """Entries of a peer that are no trace are ignored, whatever they are."""
        for entry in (7, None, ["x"], "nonsense"):
            context = RequestContext(extra={"traceparent": entry, "tracestate": 3})
            client = rpc.Client(self.make_transport(), clock=self.clock, target=TARGET)
            self.finish(client.call(context, "note"))
            self.assertIsNone(self.spans()["note receive"].parent)

    def test_request(self) -> None:
        """An HTTP request is a span below that of its client, with the status of its response."""
        wire = Wire()
        wire.site.around = AroundRequests.of([self.tracing], "api")
        for path in ("", "boom"):
            wire.send(f"GET /{path} HTTP/1.1\r\nHost: x\r\nTraceparent: {PARENT}\r\n\r\n".encode())
        good, failed = self.exporter.get_finished_spans()
        self.assertEqual(f"{good.context.trace_id:032x}", TRACE)
        self.assertEqual(
            dict(good.attributes),
            {
                "http.request.method": "GET",
                "url.path": "/",
                "novasvc.server": "api",
                "http.response.status_code": 200,
            },
        )
        self.assertEqual((failed.status.status_code, failed.kind), (trace.StatusCode.ERROR, trace.SpanKind.SERVER))
        self.flushLoggedErrors()

    def test_task(self) -> None:
        """A task's run is a trace of its own, and its calls belong to it."""
        case = self

        class Owner:
            @periodic_task(spacing=10)
            async def sweep(self, context: RequestContext) -> None:
                await case.client.call(context, "note")

        runner = TaskRunner(Owner(), clock=Clock(), random_source=random.Random(0), middleware=[self.tracing])
        self.finish(runner.run_now("sweep"))
        spans = self.spans()
        self.assertIsNone(spans["sweep task"].parent)
        self.assertEqual(spans["compute.note"].parent.span_id, spans["sweep task"].context.span_id)

    def test_event(self) -> None:
        """An event and its handlers are spans of one trace."""
        listener = rpc.EventListener(
            self.make_transport(),
            "stock",
            event_handlers(Stock()),
            clock=self.clock,
            run_blocking=self.run_blocking,
            chain=Chain.of([self.tracing], "event"),
        )
        self.successResultOf(listener.start())
        emitter = rpc.EventEmitter(
            self.make_transport(), publisher_id="x", clock=self.clock, chain=Chain.of([self.tracing], "emit")
        )
        self.finish(emitter.emit(CONTEXT, "order.placed", {"item": "tea"}))
        spans = self.spans()
        sent, received = spans["notifications.order.placed"], spans["order.placed receive"]
        self.assertEqual(received.parent.span_id, sent.context.span_id)
        self.assertEqual(sent.attributes["messaging.operation"], "publish")

    def test_not_installed(self) -> None:
        """Without OpenTelemetry, or without its exporter, the error says what to install."""
        for module in ("opentelemetry", "opentelemetry.exporter"):
            self.patch(sys, "modules", {**sys.modules, module: None})
            error = self.assertRaises(MiddlewareError, Tracing)
            self.assertIn("pip install 'novasvc[opentelemetry]'", str(error))
