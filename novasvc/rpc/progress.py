"""Progress: what a running method reports of itself with ``context.progress``, and how it reaches the caller."""

from collections.abc import Callable, Container
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.logger import Logger
from twisted.python.threadable import isInIOThread

from novasvc.context import is_fraction
from novasvc.interfaces import ITransport
from novasvc.rpc.message import Progress, encode_keepalive
from novasvc.rpc.server.call import Call

_log = Logger()

OnProgress = Callable[[float, str], object]
"""Takes the fraction, from 0.0 to 1.0, and the text of each report of a called method."""

INTERVAL = 0.5
"""Seconds between two reports to a caller, at least; of those between only the latest is sent."""
MAX_TEXT = 200
"""Characters of a report's text; more are cut off."""
_PATIENCE = 5.0
"""Seconds for which a report is buffered while it cannot be sent."""


class ProgressReports:
    """Send the reports of one server's methods to the callers.

    :param transport: sends them.
    :param clock: measures INTERVAL; its callFromThread takes the reports of blocking methods.
    :param running: the calls whose methods have not ended.
    """

    # A report is a keepalive with a field that only our clients read, so it goes to callers that asked for reports, and
    # to those that asked for keepalives. Any other caller would not understand a reply before the last one.

    def __init__(self, transport: ITransport, clock: IReactorTime, running: Container[Call]) -> None:
        self._transport = transport
        self._clock = clock
        self._running = running

    def report(self, call: Call, fraction: float, text: str) -> None:
        """Take a report of a running call's method, in any thread."""
        call.progress = Progress(fraction, text[:MAX_TEXT])
        if call.progress_due:
            return  # A loop that reports a million times a second must not flood the reactor.
        call.progress_due = True
        if IReactorFromThreads.providedBy(self._clock) and not isInIOThread():
            IReactorFromThreads(self._clock).callFromThread(self._publish_or_wait, call)
        else:
            self._publish_or_wait(call)

    def ended(self, call: Call) -> None:
        """Drop the report that waits to be sent. Called at the end of a method that has reported."""
        call.progress_due = False
        if call.progress_timer is not None:
            call.progress_timer.cancel()
            call.progress_timer = None

    def _publish_or_wait(self, call: Call) -> None:
        wait = call.progress_at + INTERVAL - self._clock.seconds()
        if call not in self._running:
            call.progress_due = False  # The report of a thread that has ended meanwhile.
        elif wait > 0:
            call.progress_timer = self._clock.callLater(wait, self._publish, call)
        else:
            self._publish(call)

    def _publish(self, call: Call) -> None:
        call.progress_due, call.progress_timer = False, None
        reply_to, request = call.request.reply_to, call.request
        wanted = request.keepalive is not None or (request.options or {}).get("progress") is True
        if call.progress is None or reply_to is None or call.answered or not wanted:
            return
        call.progress_at = self._clock.seconds()
        if call.keepalive is not None and request.keepalive is not None:
            call.keepalive.reset(request.keepalive / 2)
        body = encode_keepalive(reply_to.msg_id, call.progress)
        sending: Deferred[Any] = self._transport.reply(reply_to.address, body, _PATIENCE)
        sending.addErrback(lambda failure: _log.debug("a report of progress was not sent: {e}", e=failure.value))


class Reporter:
    """What a method's context reports to.

    :ivar call: None after the method's end: a context may live longer than its call, and the call refers to it.
    :ivar method: the method's name.
    :ivar reports: of the server.
    """

    # Made for every call, so without a constructor.
    __slots__ = ("call", "method", "reports", "told")
    call: Call | None
    method: str
    reports: ProgressReports
    told: bool

    def __call__(self, fraction: float, text: str) -> None:
        """Take a report, in any thread. After the method's end it is ignored, and logged once."""
        call = self.call
        if call is not None:
            self.reports.report(call, fraction, text)
        elif not hasattr(self, "told"):
            self.told = True
            _log.warn(
                "{method} reported progress after its end, which is ignored: the method must return after the work "
                "that reports it",
                method=self.method,
            )


def pass_on(report: Any, on_progress: OnProgress) -> None:
    """Give a report that has arrived to its caller. A malformed one is a keepalive only."""
    if not isinstance(report, dict):
        return
    fraction: Any = report.get("fraction")
    text = report.get("text")
    if not is_fraction(fraction) or not isinstance(text, str):
        return
    try:
        on_progress(float(fraction), text[:MAX_TEXT])
    except Exception:  # noqa: BLE001 - the caller's function must not cost it the result
        _log.failure("on_progress of a call raised an error; the call goes on")
