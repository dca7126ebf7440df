"""How a start waits out the outages of what it needs."""

from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from novasvc.errors import NovasvcError
from novasvc.interfaces import IInspectable
from novasvc.node.runtime import Runtime
from novasvc.registry.errors import DatabaseUnavailableError
from novasvc.transport.errors import BrokerFailedError, BrokerRefusedError, BrokerUnavailableError

_log = Logger()
_T = TypeVar("_T")

_OUTAGES = BrokerUnavailableError, DatabaseUnavailableError
"""Errors of outages, which a start waits out."""
_ANSWERS = BrokerRefusedError, BrokerFailedError
"""Outages in which the server answers, but refuses the connection."""
_AWAY = "is unavailable; retrying"


class Waiting(Protocol):
    """The service whose start waits: its runtime, and what :func:`retry_outages` reports.

    :ivar runtime: its settings, reactor and pauses between attempts.
    :ivar waiting_for: the dependency that the start waits for; None if none.
    :ivar start_error: the last error that delayed or ended the start; None once the start went on.
    """

    runtime: Runtime
    waiting_for: str | None
    start_error: NovasvcError | None


@implementer(IInspectable)
class WaitingService:
    """Have a service, which has no calls of its own to report, say what its start waits for; see :class:`Waiting`."""

    waiting_for: str | None = None
    start_error: NovasvcError | None = None

    def running_calls(self) -> list[dict[str, Any]]:
        """Return the calls under way; see :class:`~novasvc.interfaces.IInspectable`."""
        return []

    def operations_under_way(self) -> set[str]:
        """Return the request ids of the operations under way; see :class:`~novasvc.interfaces.IInspectable`."""
        return set()


async def retry_outages(
    service: Waiting, dependency: str, attempt: Callable[[], Awaitable[_T]], goes_on: Callable[[], bool]
) -> _T:
    """Call ``attempt`` with backoff until it succeeds: a start waits out an outage of a dependency.

    :param dependency: its name, such as "database".
    :param goes_on: whether the start was not stopped meanwhile.
    :raises CancelledError: it was stopped.
    """
    for failures in count(1):
        try:
            reached = await attempt()
        except NovasvcError as error:
            service.start_error = error
            if not goes_on():
                # The start was cancelled; the awaited operation turned the cancellation into this error.
                raise CancelledError from error
            if service.runtime.settings.fail_fast or not isinstance(error, _OUTAGES):
                raise
            if service.waiting_for is None:
                away = "refuses the connection; retrying" if isinstance(error, _ANSWERS) else _AWAY
                _log.error("the {dependency} {away}: {error}", dependency=dependency, away=away, error=error)
            service.waiting_for = dependency
            await deferLater(service.runtime.reactor, service.runtime.retry(failures), lambda: None)
        else:
            if service.waiting_for is not None:
                _log.info("the {dependency} is available after {n} failures", dependency=dependency, n=failures - 1)
            service.waiting_for = service.start_error = None
            return reached
    raise AssertionError  # count() does not end
