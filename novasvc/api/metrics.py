"""``/metrics``: the metrics of this process, or of all workers of its supervisor, for Prometheus."""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import attrs
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from twisted.internet.defer import Deferred

from novasvc.api.access import Access
from novasvc.api.backend import Backend
from novasvc.api.errors import APIError
from novasvc.api.openapi import STRING, content, operation
from novasvc.api.responses import make_app
from novasvc.reactor.coalesce import CoalescingCache
from novasvc.telemetry import metrics
from novasvc.telemetry.instruments import Document
from novasvc.workers.control import client as control
from novasvc.workers.errors import SupervisionError

_TIMEOUT = 3.0
"""Seconds for the supervisor, which gives its workers one."""

_CACHE_TIME = 0.5
"""Seconds for which a response is cached."""


_OPENMETRICS = b"application/openmetrics-text"
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"


@attrs.define(eq=False)
class MetricsResource:
    """Serves ``/metrics``, for callers with the scope read."""

    _backend: Backend
    _access: Access
    _documents: CoalescingCache[list[Document]] = attrs.field(init=False)

    app = make_app()

    def __attrs_post_init__(self) -> None:
        self._documents = CoalescingCache(
            lambda: Deferred.fromCoroutine(self._gather()), self._backend.reactor, lambda _: _CACHE_TIME
        )

    @app.route("/metrics", methods=["GET", "HEAD"])
    @operation(
        "Metrics of all workers, for Prometheus",
        {200: content("The metrics.", text=STRING, openmetrics=STRING)},
        *(401, 403, 503),
    )
    async def show(self, request: Any) -> bytes:
        """Respond in OpenMetrics if the client accepts it, otherwise in the Prometheus text format."""
        self._access.require(request)
        wanted = _OPENMETRICS in (request.getHeader(b"accept") or b"")
        registry = CollectorRegistry()
        registry.register(DocumentCollector(await self._documents.get()))
        request.setHeader(b"content-type", openmetrics.CONTENT_TYPE_LATEST.encode() if wanted else _TEXT)
        return openmetrics.generate_latest(registry) if wanted else generate_latest(registry)

    async def _gather(self) -> list[Document]:
        backend = self._backend
        if backend.runtime.worker is None:
            return metrics.documents()
        try:
            documents: list[Document] = await control.ask(
                backend.reactor, backend.settings.control_socket, "metrics", timeout=_TIMEOUT
            )
        except SupervisionError as error:
            raise APIError(503, f"the supervisor does not report metrics: {error}", {"Retry-After": "5"}) from error
        return documents


@attrs.frozen(eq=False)
class DocumentCollector:
    """A prometheus_client collector of documents.

    :param documents: see :data:`novasvc.telemetry.instruments.Document`.
    """

    _documents: Iterable[Document]

    def describe(self) -> Iterable[Metric]:
        """Return nothing, because the names are only known after collecting."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Return a metric family for each document."""
        for document in self._documents:
            yield _family(document)


Figures = DocumentCollector
"""Old name of :class:`DocumentCollector`; deprecated, to be removed in 1.0."""


def _family(document: Document) -> Metric:
    name, text, labels = document["name"], document["help"], document["labels"]
    if document["kind"] == "histogram":
        histogram = HistogramMetricFamily(name, text, labels=labels)
        bounds = [*(repr(float(bound)) for bound in document["bounds"]), "+Inf"]
        for values, value in document["samples"]:
            buckets = list(zip(bounds, accumulate(value["counts"]), strict=True))
            histogram.add_metric(values, buckets=buckets, sum_value=value["sum"])
        return histogram
    family = CounterMetricFamily if document["kind"] == "counter" else GaugeMetricFamily
    made = family(name, text, labels=labels)
    for values, value in document["samples"]:
        made.add_metric(values, value)
    return made
