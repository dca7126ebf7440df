"""Middleware for tests: good ones, and one for each mistake."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from novasvc.interfaces import IMiddleware
from novasvc.middleware import KINDS, Answer, Invocation

Proceed = Callable[[Invocation], Deferred[Any]]


@implementer(IMiddleware)
class Recorder:
    """Records what passes, before and after."""

    kinds = KINDS

    def __init__(self, name: str = "", kinds: frozenset[str] = KINDS) -> None:
        self.name = name
        self.kinds = kinds
        self.seen: list[str] = []
        self.invocations: list[Invocation] = []

    async def handle(self, invocation: Invocation, proceed: Proceed) -> Any:
        self.invocations.append(invocation)
        self.seen.append(f"{self.name}>{invocation}")
        try:
            reply = await proceed(invocation)
        except BaseException as error:
            self.seen.append(f"{self.name}!{type(error).__name__}")
            raise
        self.seen.append(f"{self.name}<{reply}")
        return reply


@implementer(IMiddleware)
class Around:
    """Does what a function does."""

    def __init__(self, handle: Callable[[Invocation, Proceed], Any], kinds: frozenset[str] = KINDS) -> None:
        self.kinds = kinds
        self._handle = handle

    def handle(self, invocation: Invocation, proceed: Proceed) -> Any:
        return self._handle(invocation, proceed)


class Failing(Recorder):
    """Raises before it passes anything on."""

    async def handle(self, invocation: Invocation, proceed: Proceed) -> Any:
        raise LookupError("no such tenant")


class Silent(Recorder):
    """Forgets to pass it on."""

    async def handle(self, invocation: Invocation, proceed: Proceed) -> Any:
        return None


class Hanging(Recorder):
    """Waits for what never comes."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: Deferred[None] = Deferred()

    async def handle(self, invocation: Invocation, proceed: Proceed) -> Any:
        await self.waiting
        return await proceed(invocation)


class Twice(Recorder):
    """Passes it on a second time."""

    async def handle(self, invocation: Invocation, proceed: Proceed) -> Any:
        await proceed(invocation)
        return await proceed(invocation)


class Answering(Recorder):
    """Answers in place of the rest."""

    def __init__(self, value: Any = "from the cache") -> None:
        super().__init__()
        self._value = value

    async def handle(self, invocation: Invocation, proceed: Proceed) -> Any:
        return Answer(self._value)


class NeedsArguments(Recorder):
    """Cannot be made by its name."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
