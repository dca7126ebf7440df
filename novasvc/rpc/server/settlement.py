"""Settlement of the messages that are not run: dropped, refused, quarantined or requeued, counted and logged."""

from contextvars import Context, copy_context

from twisted.logger import Logger, LogLevel

from novasvc.context import RequestContext, current_context
from novasvc.interfaces import IDelivery
from novasvc.rpc.errors import MessageFormatError, NotAllowedError, QuarantinedError, RPCError
from novasvc.rpc.identity.authorization import RefusalLog
from novasvc.rpc.message import Request
from novasvc.rpc.server.call import Call
from novasvc.rpc.server.execution import Execution
from novasvc.rpc.server.ledger import Ledger
from novasvc.rpc.server.takeover import Takeover
from novasvc.rpc.target import Target
from novasvc.telemetry.metrics import DeliveryMetrics

_log = Logger()


class Settlement:
    """Settle what one server does not run.

    :param target: the server's target, for logs.
    :param ledger: settles the calls, and remembers what is settled.
    :param takeover: the record of requests that have not begun.
    :param execution: sends the callers of refused requests an error.
    :param metrics: counts the messages by reason.
    :param refusals: counts and logs the callers that are not allowed.
    :ivar scope: the context variables for log events.
    """

    def __init__(
        self,
        target: Target,
        ledger: Ledger,
        takeover: Takeover,
        execution: Execution,
        metrics: DeliveryMetrics,
        refusals: RefusalLog,
    ) -> None:
        self.scope: Context = copy_context()
        self._target = target
        self._ledger = ledger
        self._takeover = takeover
        self._execution = execution
        self._metrics = metrics
        self._refusals = refusals

    def drop(self, delivery: IDelivery, error: MessageFormatError) -> None:
        """Reject a malformed message."""
        self._metrics.malformed.value += 1
        # A copy: a Context cannot be entered twice.
        self.scope.copy().run(_log.warn, "a message to {target} was dropped: {error}", target=self._target, error=error)
        delivery.reject()

    def refuse(self, delivery: IDelivery, request: Request, error: RPCError) -> None:
        """Settle a request that does not become a call, and reply with the error."""
        # Log events about the request carry its request id.
        scope = self.scope.copy()
        context = RequestContext.from_wire(request.context)
        scope.run(current_context.set, context)
        if isinstance(error, QuarantinedError):
            self._metrics.quarantined.value += 1
            scope.run(_log.error, "a request to {target} was quarantined: {error}", target=self._target, error=error)
            delivery.quarantine(str(error))
        else:
            self._count_refused(scope, error, request)
            self._ledger.acknowledge(delivery, request.unique_id)
        self._execution.refuse(request, context.request_id, error, delivery.expires_in)

    def refuse_lost(self, call: Call, error: RPCError) -> None:
        """Reply with an error to a call whose message the broker seems to have lost; there is nothing to settle."""
        self._count_refused(call.scope, error, call.request)
        context = RequestContext.from_wire(call.request.context)
        self._execution.refuse(call.request, context.request_id, error, None)

    def requeue(self, call: Call) -> None:
        """Requeue a call that was not begun, for any server of its target."""
        self._metrics.given_back.value += 1
        self._takeover.remove(call)
        self._ledger.requeue(call)

    def requeue_here(self, call: Call) -> None:
        """Requeue a call to this process, so that the transport counts a death if it dies with the next delivery."""
        self._ledger.requeue(call, here=True)

    def requeue_request(self, delivery: IDelivery, deliveries: int, call: Call | None) -> None:
        """Requeue a request that a draining server received.

        :param deliveries: see :meth:`novasvc.interfaces.IDelivery.requeue`.
        :param call: the call that it had become, which the ledger has released; None for none.
        """
        self._metrics.given_back.value += 1
        if call is not None:
            self._takeover.remove(call)
        delivery.requeue(deliveries)

    def _count_refused(self, scope: Context, error: RPCError, request: Request) -> None:
        self._metrics.refused.value += 1
        if isinstance(error, NotAllowedError):
            self._refusals.add(scope, error)
            return
        level = self._refusals.level_of_cast() if request.reply_to is None else LogLevel.info
        scope.run(_log.emit, level, "a request to {target} was refused: {error}", target=self._target, error=error)
