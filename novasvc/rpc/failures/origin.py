"""Where an error of a remote call was raised: service, method, host, worker and request id."""

from collections.abc import Sequence
from typing import Any

import attrs

_ORIGIN = "__novasvc_origin__"
_OUTGOING = "__novasvc_outgoing__"
# Bounds, because a peer sends these values, and notes and logs show them.
_LONGEST = 255
_MOST_WORKERS = 1_000_000
MAX_SERVICES = 16
"""The most services that an origin names; of a longer chain, the middle is left out."""


@attrs.frozen(kw_only=True)
class Origin:
    """The service that raised an error of a remote call; see :func:`origin_of`.

    As text: "stock.reserve on h2 worker 1, through shop.order on h1; request req-1".

    :param topic: the service's topic; "" if unknown.
    :param method: the method that raised the error, or that the call named; "" if unknown.
    :param host: the service's host; None if the server did not say, as those of oslo.messaging.
    :param worker: the number of the worker process; None without workers.
    :param request_id: the request id of the call; None if unknown.
    :param through: the services whose methods called the one before and let its error through, in this order; their
        own ``through`` is empty.
    """

    topic: str = ""
    method: str = ""
    host: str | None = None
    worker: int | None = None
    request_id: str | None = None
    through: Sequence["Origin"] = ()

    def __str__(self) -> str:
        text = ", through ".join(each.place for each in (self, *self.through))
        return f"{text}; request {self.request_id}" if self.request_id else text

    @property
    def place(self) -> str:
        """The service without the request: "stock.reserve on h2 worker 1"."""
        name = ".".join(part for part in (self.topic, self.method) if part) or "a service"
        host = "" if self.host is None else f" on {self.host}"
        return name + host + ("" if self.worker is None else f" worker {self.worker}")

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are known, without ``through``, as JSON."""
        fields = {
            "topic": self.topic,
            "method": self.method,
            "host": self.host,
            "worker": self.worker,
            "request_id": self.request_id,
        }
        return {name: value for name, value in fields.items() if value is not None and value != ""}


def origin_of(error: BaseException) -> Origin | None:
    """Return where an error of a remote call was raised.

    :param error: an error that a call of :class:`novasvc.rpc.Client` raised, of any class.
    :return: None if the error does not come from another service: it was raised here, or no reply came.
    """
    found = vars(error).get(_ORIGIN)
    return found if isinstance(found, Origin) else None


def set_origin(error: BaseException, origin: Origin) -> None:
    """Record where an error was raised, for :func:`origin_of`."""
    # Not setattr: instances of frozen classes refuse it.
    vars(error)[_ORIGIN] = origin


def with_origin(error: BaseException, text: str) -> str:
    """Append an error's origin to its text, in parentheses, unless there is none or the text has it already."""
    origin = origin_of(error)
    return text if origin is None or str(origin) in text else f"{text} (from {origin})"


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error, which tracebacks show; see PEP 678. Works for instances of frozen classes too."""
    vars(error).setdefault("__notes__", []).append(note)


def mark_outgoing(error: BaseException) -> None:
    """Mark an error as one of a call that could not be sent, so that it is not taken for one of the call served."""
    vars(error)[_OUTGOING] = True


def is_outgoing(error: BaseException) -> bool:
    """Return whether an error is marked by :func:`mark_outgoing`."""
    return _OUTGOING in vars(error)


def encode_origin(error: BaseException, here: Origin) -> list[dict[str, Any]]:
    """Return the origin of an error that a service sends to its caller, as JSON.

    :param here: the service that sends it.
    :return: the service that raised it first, then those that let it through, in this order.
    """
    origin = origin_of(error)
    services = [here] if origin is None else [origin, *origin.through, here]
    if len(services) > MAX_SERVICES:
        half = MAX_SERVICES // 2
        services = services[:half] + services[-half:]
    return [each.to_json() for each in services]


def decode_origin(value: object) -> Origin | None:
    """Read what :func:`encode_origin` returned; None if it is not of that form."""
    if not isinstance(value, list):
        return None
    services = [_service(each) for each in value[:MAX_SERVICES] if isinstance(each, dict)]
    if len(services) > 1:
        return attrs.evolve(services[0], through=tuple(services[1:]))
    return services[0] if services else None


def _service(fields: dict[str, Any]) -> Origin:
    worker = fields.get("worker")
    return Origin(
        topic=_text(fields.get("topic")) or "",
        method=_text(fields.get("method")) or "",
        host=_text(fields.get("host")),
        worker=worker if type(worker) is int and 0 <= worker < _MOST_WORKERS else None,
        request_id=_text(fields.get("request_id")),
    )


def _text(value: object) -> str | None:
    return value[:_LONGEST] if isinstance(value, str) and value.isprintable() else None
