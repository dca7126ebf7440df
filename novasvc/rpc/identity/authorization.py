"""Authorisation: which callers may call a method that has ``allow=``."""

from contextvars import Context, ContextVar
from typing import Any

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger, LogLevel

from novasvc.context import RequestContext
from novasvc.interfaces import IDelivery
from novasvc.middleware import Invocation
from novasvc.middleware.invocation import SERVE
from novasvc.rpc.endpoint import Endpoints
from novasvc.rpc.errors import NotAllowedError
from novasvc.rpc.identity.allowed import Allowed
from novasvc.rpc.identity.signature import SignatureError, Verifier
from novasvc.rpc.message import Request
from novasvc.rpc.target import Target
from novasvc.telemetry import metrics

_log = Logger()

_LOG_INTERVAL = 10.0
"""Seconds between two log lines about refused callers; those in between are counted."""

current_caller: ContextVar[str | None] = ContextVar("novasvc_caller", default=None)
"""The verified identity of the caller, while a method with ``allow=`` runs; None in all other methods."""


@attrs.frozen(eq=False)
class Authorizer:
    """Decides who may call the methods of a server that have ``allow=``.

    :param verifier: knows the callers' keys; None without any.
    :param trust_unsigned: allow everybody if there are no keys: the transport admits only the node's own user.
    :param operators: identities that may call the methods for operators; empty for all that the verifier knows.
    """

    verifier: Verifier | None = None
    trust_unsigned: bool = False
    operators: frozenset[str] = frozenset()

    def warn_of_refusals(self, endpoints: Endpoints) -> None:
        """Log, if no caller can be known, which methods can be called by nobody. Called when their server starts."""
        limited = [(method.name, method.exposure.allow) for method in endpoints]
        closed = sorted({name for name, allow in limited if allow is not None and not allow.operators})
        if closed and self.verifier is None and not self.trust_unsigned:
            _log.warn(
                "nobody can call {methods}, which have allow=: set rpc_callers_file to a file with the callers' keys",
                methods=", ".join(closed),
            )

    def check(
        self, allowed: Allowed, delivery: IDelivery, request: Request, args: Any, target: Target, scope: Context
    ) -> None:
        """Check a request to a method with ``allow=``.

        :param args: the arguments, converted.
        :param target: what the server serves.
        :param scope: the method's context variables; ``current_caller`` is set there.
        :raises NotAllowedError: the caller is not known, or not allowed.
        """
        if self.verifier is None:
            if self.trust_unsigned or allowed.operators:
                return
            problem = "this server knows no callers' keys; set rpc_callers_file there"
            raise NotAllowedError(request.method, "", str(allowed), problem)
        try:
            identity = self.verifier.verify(delivery.body, target, delivery.sent_to)
        except SignatureError as error:
            problem = f"{error}; set rpc_signing_key_file at the caller" if "not signed" in str(error) else str(error)
            raise NotAllowedError(request.method, "", str(allowed), problem) from None
        if not self._consents(allowed, identity, request, args, target):
            raise NotAllowedError(request.method, identity, str(allowed))
        scope.run(current_caller.set, identity)

    def _consents(self, allowed: Allowed, identity: str, request: Request, args: Any, target: Target) -> bool:
        if allowed.operators:
            return identity in self.operators or not self.operators
        if allowed.check is None:
            return identity in allowed.names
        invocation = Invocation(
            kind=SERVE,
            name=request.method,
            context=RequestContext.from_wire(request.context),
            args=args,
            topic=target.topic,
            server=target.server,
            namespace=request.namespace,
            message_id=None if request.reply_to is None else request.reply_to.msg_id,
        )
        try:
            return allowed.check(identity, invocation) is True
        except Exception:  # noqa: BLE001 - a check that fails allows nobody
            _log.failure("the check of {method} failed, so it refuses", level=LogLevel.error, method=request.method)
            return False


class RefusalLog:
    """Counts refused callers, and logs them at most once in _LOG_INTERVAL.

    :param topic: of the server.
    :param clock: measures the interval.
    """

    def __init__(self, topic: str, clock: IReactorTime) -> None:
        self._topic = topic
        self._clock = clock
        self._next = 0.0
        self._next_cast = 0.0
        self._silent = 0

    def level_of_cast(self) -> Any:
        """Return the LogLevel of a refused cast: now and then a warning, because its sender is not told."""
        now = self._clock.seconds()
        if now < self._next_cast:
            return LogLevel.info
        self._next_cast = now + _LOG_INTERVAL
        return LogLevel.warn

    def add(self, scope: Context, error: NotAllowedError) -> None:
        """Count a refusal; log it, if none was logged shortly before."""
        metrics.not_allowed.at(self._topic, error.method).value += 1
        now = self._clock.seconds()
        if now < self._next:
            self._silent += 1
            return
        more = f" ({self._silent} more since the last such line)" if self._silent else ""
        self._next, self._silent = now + _LOG_INTERVAL, 0
        scope.run(_log.warn, "refused a call to {topic}: {error}{more}", topic=self._topic, error=error, more=more)
