"""A client whose results can be awaited anywhere in a test."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Self

from twisted.internet.defer import Deferred

from novasvc import rpc
from novasvc.testing.waiting import Answer


class FleetClient:
    """A :class:`novasvc.rpc.Client` whose Deferreds advance the fleet's time when they are awaited.

    It has the methods of the client. A client that they return is of this class, too, and so is an asynchronous
    iterator: each of its steps advances the time.

    :param source: the client, or the iterator.
    :param answer: makes an Answer of a Deferred.
    """

    def __init__(self, source: Any, answer: Callable[[Deferred[Any]], Answer[Any]]) -> None:
        self._source = source
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._source, name)
        if not callable(value):
            return value

        @wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = value(*args, **kwargs)
            if isinstance(result, Deferred):
                return self._answer(result)
            mine = isinstance(result, rpc.Client) or hasattr(result, "__anext__")
            return FleetClient(result, self._answer) if mine else result

        return call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return await self._answer(Deferred.fromCoroutine(_step(self._source)))


async def _step(iterator: Any) -> Any:
    return await anext(iterator)
