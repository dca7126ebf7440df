"""A client whose results can be awaited anywhere in a test."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from twisted.internet.defer import Deferred

from novasvc import rpc
from novasvc.testing.waiting import Answer


class FleetClient:
    """A :class:`novasvc.rpc.Client` whose Deferreds advance the fleet's time when they are awaited.

    It has the methods of the client, and ``prepare`` returns another one of this class.

    :param client: the client.
    :param answer: makes an Answer of a Deferred.
    """

    def __init__(self, client: rpc.Client, answer: Callable[[Deferred[Any]], Answer[Any]]) -> None:
        self._client = client
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if not callable(value):
            return value

        @wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = value(*args, **kwargs)
            if isinstance(result, Deferred):
                return self._answer(result)
            return FleetClient(result, self._answer) if isinstance(result, rpc.Client) else result

        return call
