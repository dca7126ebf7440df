"""The base class of services that are driven by a Lifecycle."""

from twisted.application import service
from twisted.internet.defer import Deferred
from zope.interface import implementer

from novasvc.interfaces import IStartable
from novasvc.node.lifecycle import Lifecycle


@implementer(IStartable)
class LifecycleService(service.Service):
    """A service whose start and stop take time, by Twisted's names.

    A subclass sets ``_lifecycle`` in its constructor.
    """

    _lifecycle: Lifecycle

    @property
    def state(self) -> str:
        """The state's name: initial, starting, running, draining, stopped or failed."""
        return self._lifecycle.state

    @property
    def running(self) -> bool:  # type: ignore[override]  # Twisted's is a plain attribute
        """Whether it is starting or running."""
        return self.state in {"starting", "running"}

    def startService(self) -> None:
        """Begin to start. :meth:`when_started` and the log tell the outcome."""
        # Twisted ignores what startService returns; the service has logged why it did not start.
        self._lifecycle.start().addErrback(lambda _: None)

    def when_started(self) -> Deferred[None]:
        """Wait for the start; see :class:`~novasvc.interfaces.IStartable`."""
        return self._lifecycle.when_started()

    def stopService(self) -> Deferred[None]:
        """Drain and stop.

        :return: Deferred[None], fired when it has stopped. Errors of the stop are logged.
        """
        return self._lifecycle.stop()
