"""The chain of the middleware around one kind of invocation."""

from collections.abc import Callable, Iterable, Sequence
from types import CoroutineType
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.errors import NovasvcError
from novasvc.middleware.errors import MiddlewareError
from novasvc.middleware.invocation import Invocation

_log = Logger()

End = Callable[[Invocation], Any]
"""Do what the middleware is around; returns a value, a Deferred or a coroutine."""


@attrs.frozen
class Answer:
    """What a middleware returns to answer an invocation itself, without passing it on.

    :param value: the result of the call, method, handler or task; the status of an HTTP response.
    """

    value: Any = None


@attrs.define(eq=False)
class _Turn:
    """One middleware's part in one invocation.

    :ivar inner: what the invocation became when it was passed on; None before that.
    :ivar ended: whether that has ended.
    :ivar error: what it raised, if it has.
    :ivar misuse: how the middleware has misused ``proceed``.
    """

    inner: Deferred[Any] | None = attrs.field(default=None, init=False)
    ended: bool = attrs.field(default=False, init=False)
    error: BaseException | None = attrs.field(default=None, init=False)
    misuse: MiddlewareError | None = attrs.field(default=None, init=False)

    def follow(self, inner: Deferred[Any]) -> Deferred[Any]:
        self.inner = inner
        return inner.addBoth(self._end)

    def _end(self, result: Any) -> Any:
        self.ended = True
        if isinstance(result, Failure):
            self.error = result.value
        return result


@attrs.frozen(eq=False)
class Chain:
    """Middleware in order; the first one is the outermost. Shared by all invocations.

    :param middleware: providers of :class:`novasvc.interfaces.IMiddleware`; not empty.
    """

    _middleware: Sequence[Any]

    @classmethod
    def of(cls, middleware: Iterable[Any], *kinds: str) -> "Chain | None":
        """Return the chain of those that wrap one of the kinds; None if there are none."""
        found = [each for each in middleware if not each.kinds.isdisjoint(kinds)]
        return cls(found) if found else None

    def run(self, invocation: Invocation, end: End) -> Deferred[Any]:
        """Pass an invocation through the chain, and do at its end what it is about.

        :return: Deferred of the reply. Cancelling it cancels what is waited for, in every middleware. Fails with what
            the end or a middleware raised, or with MiddlewareError.
        """
        return self._step(0, invocation, end)

    def _step(self, place: int, invocation: Invocation, end: End) -> Deferred[Any]:
        while place < len(self._middleware):
            if invocation.kind in self._middleware[place].kinds:
                return Deferred.fromCoroutine(self._handle(place, invocation, end))
            place += 1
        return maybeDeferred(end, invocation)

    async def _handle(self, place: int, invocation: Invocation, end: End) -> Any:
        middleware, turn = self._middleware[place], _Turn()

        def proceed(passed: Invocation) -> Deferred[Any]:
            if turn.inner is not None:
                problem, remedy = f"it called next twice for {invocation}", "call next once"
                turn.misuse = MiddlewareError(name_of(middleware), problem, remedy)
                raise turn.misuse
            if getattr(passed, "kind", None) != invocation.kind:
                problem = f"it called next with {passed!r:.100} for {invocation}"
                turn.misuse = MiddlewareError(name_of(middleware), problem, "pass the invocation, or an evolved copy")
                raise turn.misuse
            return turn.follow(self._step(place + 1, passed, end))

        try:
            reply = middleware.handle(invocation, proceed)
            # A middleware may return what next returned, without awaiting it.
            while isinstance(reply, Deferred | CoroutineType):
                reply = await reply
        except Exception as error:
            _discard(turn)
            if error is not turn.error and not isinstance(error, NovasvcError | CancelledError):
                _log.error(
                    "middleware {name} raised {error!r} around {invocation}",
                    name=name_of(middleware),
                    error=error,
                    invocation=str(invocation),
                )
            raise
        return _checked(middleware, invocation, turn, reply)


def _checked(middleware: Any, invocation: Invocation, turn: _Turn, reply: Any) -> Any:
    """Return a middleware's reply.

    :raises MiddlewareError: it did not call next exactly once and wait for it.
    """
    ended, called = turn.ended, turn.inner is not None
    _discard(turn)
    if turn.misuse is not None:
        raise turn.misuse
    if called and not ended:
        problem, remedy = f"it returned before next had ended, around {invocation}", "await next(invocation)"
        raise MiddlewareError(name_of(middleware), problem, remedy)
    if isinstance(reply, Answer):
        return reply.value
    if not called:
        problem = f"it returned without calling next, around {invocation}"
        remedy = "return await next(invocation), or return novasvc.middleware.Answer(...) to answer in its place"
        raise MiddlewareError(name_of(middleware), problem, remedy)
    return reply


def _discard(turn: _Turn) -> None:
    """Cancel what was passed on and is not waited for any more."""
    if turn.inner is not None:
        turn.inner.addErrback(lambda _: None)
        if not turn.ended:
            turn.inner.cancel()


def name_of(middleware: Any) -> str:
    """Return the dotted name of a middleware's class."""
    kind = type(middleware)
    return f"{kind.__module__}.{kind.__qualname__}"
