"""OpenTelemetry: a span for each call, method, event, periodic task and HTTP request, in one trace across services.

Spans and attributes of calls and methods have the names that oslo.messaging 18.3 gives them, and the trace travels in
the context's entry ``traceparent`` (W3C Trace Context), so a trace goes through services of either library.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from zope.interface import implementer

from novasvc._version import __version__
from novasvc.interfaces import IMiddleware
from novasvc.middleware.errors import MiddlewareError
from novasvc.middleware.invocation import CALL, CAST, EMIT, EVENT, HTTP, KINDS, SENDING, SERVE, TASK, Invocation

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanKind, TracerProvider

_SERVER_ERROR = 500
_OPERATIONS = {CALL: CALL, CAST: CAST, EMIT: "publish", SERVE: "receive", EVENT: "receive"}


@implementer(IMiddleware)
class Tracing:
    """Makes the spans. Name it in ``rpc_middleware``, first; it needs the extra ``novasvc[opentelemetry]``.

    :param provider: makes the tracer; None takes the program's global one. If there is none, OpenTelemetry's variables
        say where spans are sent: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME and the others.
    :raises MiddlewareError: OpenTelemetry is not installed.
    """

    kinds = KINDS

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        try:
            from opentelemetry import context, propagate, trace  # noqa: PLC0415 - an extra
        except ImportError as error:
            problem = f"OpenTelemetry is not installed: {error}"
            raise MiddlewareError(_name(self), problem, "pip install 'novasvc[opentelemetry]'") from error
        self._trace = trace
        self._propagate = propagate
        self._no_parent = context.Context()
        if provider is None and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(_provider_of_environment(self))
        self._tracer = trace.get_tracer("novasvc", __version__, provider)

    async def handle(self, invocation: Invocation, proceed: Callable[[Invocation], Deferred[Any]]) -> Any:
        """Make a span around an invocation; see :class:`novasvc.interfaces.IMiddleware`."""
        name, kind, attributes = self._described(invocation)
        sends = invocation.kind in SENDING
        # A method's parent is its caller. The process's own work has no parent, whatever runs around it.
        parent = None if sends else self._propagate.extract(_carrier(invocation), self._no_parent)
        with self._tracer.start_as_current_span(
            name, parent, kind, attributes, set_status_on_exception=False, record_exception=False
        ) as span:
            try:
                reply = await proceed(self._with_trace(invocation) if sends else invocation)
            except Exception as error:
                span.set_status(self._trace.StatusCode.ERROR, str(error))
                span.record_exception(error)
                raise
            if invocation.kind == HTTP:
                self._end_request(span, reply)
            return reply

    def _with_trace(self, invocation: Invocation) -> Invocation:
        """Return a copy whose context carries the current span."""
        context = invocation.context
        assert context is not None  # of what is sent
        carrier: dict[str, str] = {}
        self._propagate.inject(carrier)
        return attrs.evolve(invocation, context=attrs.evolve(context, extra={**context.extra, **carrier}))

    def _end_request(self, span: "Span", status: Any) -> None:
        span.set_attribute("http.response.status_code", status)
        if isinstance(status, int) and status >= _SERVER_ERROR:
            span.set_status(self._trace.StatusCode.ERROR)

    def _described(self, invocation: Invocation) -> tuple[str, "SpanKind", dict[str, Any]]:
        """Return name, kind and attributes of the span; source of the RPC ones: oslo_messaging._tracing."""
        name, topic, kinds = invocation.name, invocation.topic, self._trace.SpanKind
        if invocation.kind == HTTP:
            args = invocation.args
            # Not the query, nor headers: they may have secrets.
            attributes = {"http.request.method": name, "url.path": args["path"], "novasvc.server": args["server"]}
            return name, kinds.SERVER, attributes
        attributes = {} if invocation.context is None else {"openstack.request_id": invocation.context.request_id}
        if invocation.kind == TASK:
            return f"{name} task", kinds.INTERNAL, {**attributes, "novasvc.task": name}
        attributes |= {"messaging.system": "rabbitmq", "messaging.operation": _OPERATIONS[invocation.kind]}
        if invocation.kind in {CALL, CAST, SERVE}:
            attributes["rpc.method"] = name
        if invocation.kind in SENDING:
            attributes["messaging.destination.name"] = topic
            if invocation.namespace:
                attributes["rpc.service"] = invocation.namespace
            return f"{topic}.{name}", kinds.PRODUCER, attributes
        if invocation.message_id:
            attributes["messaging.message.id"] = invocation.message_id
        return f"{name} receive", kinds.CONSUMER, attributes


def _carrier(invocation: Invocation) -> dict[str, str]:
    """Return where the caller's span may be: the headers of a request, or the context's further entries."""
    context = invocation.context
    entries: Mapping[str, Any] = invocation.headers if context is None else context.extra
    return {name: value for name, value in entries.items() if isinstance(value, str)}  # a peer may send anything


def _provider_of_environment(owner: Tracing) -> "TracerProvider":
    """Make the provider that OpenTelemetry's variables describe."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider as SDKTracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        problem = f"the program has no tracer provider, and OpenTelemetry's exporter is not installed: {error}"
        raise MiddlewareError(_name(owner), problem, "pip install 'novasvc[opentelemetry]'") from error
    named = "OTEL_SERVICE_NAME" in os.environ or SERVICE_NAME in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = SDKTracerProvider(resource=Resource.create({} if named else {SERVICE_NAME: "novasvc"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _name(owner: Tracing) -> str:
    return f"{type(owner).__module__}.{type(owner).__qualname__}"
