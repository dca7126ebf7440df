"""Failures that no caller sees: those of handlers of events, and of periodic tasks."""

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.testing.errors import UnseenFailureError

_SOURCES = frozenset({"novasvc.rpc.events.listener", "novasvc.periodic.task"})
"""The loggers of what runs without a caller."""

_MOST = 100
"""Failures that are remembered."""


@implementer(ILogObserver)
class Failures:
    """Remembers the exceptions of handlers and tasks that are logged, from :meth:`start` to :meth:`stop`."""

    def __init__(self) -> None:
        self._seen: list[tuple[str, BaseException]] = []

    def start(self) -> None:
        """Begin to look at the log."""
        globalLogPublisher.addObserver(self)

    def stop(self) -> None:
        """Look no more; what was seen stays."""
        globalLogPublisher.removeObserver(self)

    def flush(self, *kinds: type[BaseException]) -> list[BaseException]:
        """Return the exceptions of these classes, or all of them, and forget them."""
        found = [each for each in self._seen if isinstance(each[1], kinds or BaseException)]
        self._seen = [each for each in self._seen if each not in found]
        return [error for _, error in found]

    def check(self) -> None:
        """Check that there are none left.

        :raises UnseenFailureError: there are some; its cause is the first one.
        """
        if not self._seen:
            return
        (what, first), *others = self._seen
        self._seen = []
        more = f", and {len(others)} more" if others else ""
        problem = f"it failed with {type(first).__name__}: {first}{more}"
        remedy = "mend it; or, if the test expects that, call fleet.flush_failures()"
        raise UnseenFailureError(what, problem, remedy) from first

    def __call__(self, event: LogEvent) -> None:
        """Take an event of the log."""
        failure = event.get("log_failure")
        if isinstance(failure, Failure) and event.get("log_namespace") in _SOURCES and len(self._seen) < _MOST:
            error = failure.value
            if error is not None and all(error is not each for _, each in self._seen):
                self._seen.append((str(event.get("task") or event.get("handler") or "a handler"), error))
