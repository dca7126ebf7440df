"""Events: the decorator that declares a handler, and the handlers of a manager.

An event is a notification of OpenStack's wire; see :mod:`novasvc.rpc.events.notification`.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import translate
from typing import Any, TypeVar

import attrs
from msgspec import convert

from novasvc.errors import DeclarationError
from novasvc.rpc.contracts.contract import Contract, contract_of
from novasvc.rpc.events.notification import PRIORITIES, Notification
from novasvc.rpc.exposure import read_signature

_Function = TypeVar("_Function", bound=Callable[..., Any])

_MARK = "__novasvc_event__"

FIELDS = ("payload", "event_type", "priority", "publisher_id", "message_id", "timestamp")
"""The parameters that a handler may have besides its context."""

TIMEOUT = 300.0
"""Seconds after which a handler is cancelled, unless it says otherwise: well below a broker's consumer_timeout."""


@attrs.frozen
class Subscription:
    """The options of one handler; see :func:`event`.

    :param patterns: globs of event types.
    :param names: the parameters that the handler has, of FIELDS.
    """

    patterns: Sequence[str]
    priorities: Sequence[str]
    blocking: bool
    timeout: float
    names: frozenset[str]


def event(
    *patterns: str, priorities: Iterable[str] = PRIORITIES, blocking: bool = False, timeout: float = TIMEOUT
) -> Callable[[_Function], _Function]:
    """Have a manager's method handle events, at least once each.

    The method takes ``(self, context, payload)``, and any of ``event_type``, ``priority``, ``publisher_id``,
    ``message_id`` and ``timestamp`` that it names. An annotated payload is checked and converted, as the arguments of
    exposed methods are. It may return a Deferred or a coroutine.

    All nodes of a topic share the topic's copy of an event: one of them handles it. An event is acknowledged when its
    handlers have ended. If one raises, the event is delivered again after a delay, and quarantined after some attempts;
    see the settings ``event_attempts`` and ``event_retry_delay``. So a handler may see an event twice.

    :param patterns: event types: "order.placed", or globs such as "order.*", where "*" stands for any text.
    :param priorities: of the events, of :data:`novasvc.rpc.events.notification.PRIORITIES`; all by default.
    :param blocking: run the method in the thread pool, because it blocks.
    :param timeout: seconds, > 0, after which the method is cancelled, which counts as an error. The thread of a
        blocking method cannot be cancelled, and runs on.
    :raises DeclarationError: a pattern, an option or the method's signature is invalid.
    """
    given = tuple(priorities)
    bare: Any = patterns[0] if patterns else None
    if callable(bare):  # "@rpc.event" is given the method itself, and what it returned would take the method's place
        where = f"{getattr(bare, '__module__', '?')}.{getattr(bare, '__qualname__', repr(bare))}"
        raise DeclarationError(where, "@rpc.event names no events", 'name them, as in @rpc.event("order.*")')

    def decorate(function: _Function) -> _Function:
        where = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
        if not patterns or not all(str(each).strip() for each in patterns):
            problem = f"the patterns are {patterns!r}"
            raise DeclarationError(where, problem, 'name the events, as in @rpc.event("order.*")')
        if not given or not set(given) <= set(PRIORITIES):
            problem = f"priorities={given!r}"
            raise DeclarationError(where, problem, f"give some of {', '.join(PRIORITIES)}")
        if not 0 < timeout < float("inf"):
            raise DeclarationError(where, f"timeout={timeout!r} is not a number of seconds above 0", "give seconds")
        required, allowed, _ = read_signature(function, where, blocking=blocking)
        names = frozenset(FIELDS) if allowed is None else allowed
        wrong = sorted((required | names) - frozenset(FIELDS))
        if wrong or "payload" not in names:
            problem = f"its parameters {', '.join(wrong)} are unknown" if wrong else "it has no parameter payload"
            raise DeclarationError(where, problem, f"take (self, context, payload), and any of {', '.join(FIELDS[1:])}")
        setattr(function, _MARK, Subscription(patterns, given, blocking, float(timeout), names))
        return function

    return decorate


@attrs.frozen(eq=False)
class EventHandler:
    """A handler of one object.

    :param name: of the method.
    :param function: the bound method; takes a context and the arguments of :meth:`arguments`.
    :param contract: the types of its arguments; None if it has no annotations.
    """

    name: str
    function: Callable[..., Any]
    subscription: Subscription
    contract: Contract | None
    _pattern: re.Pattern[str]

    def handles(self, notification: Notification) -> bool:
        """Return whether the handler is to be called for a notification."""
        matches = self._pattern.fullmatch(notification.event_type) is not None
        return matches and notification.priority in self.subscription.priorities

    def arguments(self, notification: Notification) -> dict[str, Any]:
        """Return the handler's arguments for a notification.

        :raises InvalidArgumentsError: the payload is not what the handler's annotations say.
        """
        args = {name: getattr(notification, name) for name in self.subscription.names}
        contract = self.contract
        if contract is None or contract.arguments is None:
            return args
        try:
            return {**args, **convert(args, contract.arguments, str_keys=True)}
        except Exception as error:  # noqa: BLE001 - users' classes may raise anything when they are made
            raise contract.invalid_arguments(error) from None


def event_handlers(*objects: object) -> list[EventHandler]:
    """Return the handlers of objects, in the order of their names.

    :raises DeclarationError: an annotation cannot be checked.
    """
    return [handler for each in objects for handler in _handlers(each)]


def _handlers(owner: object) -> Iterator[EventHandler]:
    kind = type(owner)
    for name in dir(kind):
        attribute = inspect.getattr_static(kind, name)
        subscription = getattr(attribute, _MARK, None) if callable(attribute) else None
        if isinstance(subscription, Subscription):
            function = getattr(owner, name)
            contract = contract_of(function, name, f"{kind.__module__}.{kind.__qualname__}.{name}")
            pattern = re.compile("|".join(map(translate, subscription.patterns)))
            yield EventHandler(name, function, subscription, contract, pattern)


def describe_handlers(handlers: Iterable[EventHandler]) -> list[dict[str, Any]]:
    """Describe handlers, for people and programs.

    :return: {"handler": name of the method, "patterns": [str], "priorities": [str], "summary": the first line of the
        docstring, "timeout": seconds, "schema": see :meth:`novasvc.rpc.contracts.contract.Contract.schema`, or None}
        each.
    """
    return [
        {
            "handler": each.name,
            "patterns": list(each.subscription.patterns),
            "priorities": list(each.subscription.priorities),
            "summary": (inspect.getdoc(each.function) or "").partition("\n")[0],
            "timeout": each.subscription.timeout,
            "schema": None if each.contract is None else each.contract.schema(),
        }
        for each in handlers
    ]
