"""Typed clients: call a service's methods as the methods of an interface."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from novasvc.context import RequestContext
from novasvc.errors import DeclarationError
from novasvc.rpc.blocking import BlockingClient
from novasvc.rpc.client import Client
from novasvc.rpc.contracts.contract import Contract, arguments_as_json, contract_of
from novasvc.rpc.contracts.shape import Shape
from novasvc.rpc.errors import (
    InvalidArgumentsError,
    MessageFormatError,
    NoSuchMethodError,
    UnsupportedVersionError,
)
from novasvc.rpc.failures.origin import is_outgoing

_Interface = TypeVar("_Interface")

_CONTRADICTIONS = (InvalidArgumentsError, NoSuchMethodError, UnsupportedVersionError)
"""What a service answers that does not have the interface."""

_ADVICE = (
    "the interface {} differs from the service, which may be of another version: `novasvc stub TOPIC` writes it anew"
)


def stub(interface: Callable[..., _Interface], client: Client | BlockingClient) -> _Interface:
    """Make a client whose methods are those of an interface, so that type checkers and editors know them.

    The interface is a :class:`typing.Protocol`, or any class, whose methods are declared as callers see them::

        class Stock(Protocol):
            def reserve(self, context: RequestContext, item: str, amount: int = 1) -> Deferred[str]: ...


        stock = rpc.stub(Stock, manager.attachments.rpc.prepare(topic="stock"))
        await stock.reserve(context, "tea", amount=2)

    ``novasvc stub TOPIC`` writes the interface of a running service. Arguments may be dataclasses, attrs classes, enums
    and datetimes; the result is converted to the annotated type.

    :param interface: each public method takes a context first. A method that is annotated with ``Deferred[T]`` or
        ``Awaitable[T]`` is called and waited for. One that is annotated with ``None`` is cast. For a blocking client
        the methods are annotated with the results themselves, and all are called.
    :param client: prepared with topic, and with version, namespace or timeout where they differ from the defaults.
    :return: an object with these methods, and no others. An error of a service that differs from the interface has a
        note that says so.
    :raises DeclarationError: a method has no context, or an annotation that JSON cannot represent.
    """
    # Not type[...] in the signature: mypy takes no protocol for that (its issue 4717).
    assert isinstance(interface, type)
    methods: dict[str, Any] = {}
    for name, function in inspect.getmembers(interface, inspect.isfunction):
        if not name.startswith("_"):
            methods[name] = _method(interface, name, function, client)
    made: Any = type(f"{interface.__name__}Stub", (), methods)()
    return made  # type: ignore[no-any-return]


def _method(interface: type, name: str, function: Callable[..., Any], client: Client | BlockingClient) -> Any:
    where = f"{interface.__module__}.{interface.__qualname__}.{name}"
    signature = inspect.signature(function)
    if len(signature.parameters) < 2:  # noqa: PLR2004 - self and the context
        raise DeclarationError(where, "it takes no context", f"write def {name}(self, context: RequestContext, ...)")
    contract = contract_of(function, name, where)
    shape = None if contract is None else contract.result_shape
    waits = _waits(function) or isinstance(client, BlockingClient)
    casts = contract is not None and contract.result is type(None) and not waits
    context_name = list(signature.parameters)[1]
    # The parameter that takes all other names, if there is one.
    others = next((each.name for each in signature.parameters.values() if each.kind is each.VAR_KEYWORD), None)

    example = f"{name}({', '.join([context_name, *(f'{each}=...' for each in list(signature.parameters)[2:])])})"

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            if len(args) > 1 and isinstance(args[1], RequestContext):
                raise
            raise TypeError(f"{name}(): {error}; its first argument is a RequestContext: write {example}") from None
        context: RequestContext = bound.pop(context_name)
        if not isinstance(context, RequestContext):
            raise TypeError(f"{name}() takes a RequestContext first, not {context!r:.80}; write {example}")
        del bound[next(iter(signature.parameters))]
        if others in bound:
            bound |= bound.pop(others)
        if casts:
            return _send(client, client.cast, context, name, bound)
        try:
            calling: Any = _send(client, client.call, context, name, bound)
        except _CONTRADICTIONS as error:
            _advise(error, where)
            raise
        if isinstance(calling, Deferred):
            return calling.addCallbacks(_convert, _failed, (contract, shape, where), {}, (where,))
        return _convert(calling, contract, shape, where)

    return call


def _waits(function: Callable[..., Any]) -> bool:
    """Return whether a method that returns None is annotated to return it later."""
    returned = inspect.signature(function).return_annotation
    return inspect.iscoroutinefunction(function) or (returned is not None and returned != "None")


def _send(
    client: Client | BlockingClient,
    send: Callable[..., Any],
    context: RequestContext,
    name: str,
    args: Mapping[str, Any],
) -> Any:
    """Send a method's arguments with the client's call or cast, and fail as that does if JSON cannot hold them."""
    try:
        arguments = arguments_as_json(name, args)
    except InvalidArgumentsError as error:
        if isinstance(client, BlockingClient):
            raise
        return fail(error)
    return send(context, name, **arguments)


def _failed(failure: Failure, where: str) -> Failure:
    _advise(failure.value, where)
    return failure


def _advise(error: BaseException | None, where: str) -> None:
    """Add a note to a service's answer that contradicts the interface; not to the error of a call that was not sent."""
    if isinstance(error, _CONTRADICTIONS) and not is_outgoing(error):
        error.add_note(_ADVICE.format(where))


def _convert(result: Any, contract: Contract | None, shape: Shape | None, where: str) -> Any:
    if contract is None or contract.result is Any:
        return result
    try:
        fitting = result if shape is None else shape.fit(result)
        return msgspec.convert(fitting, contract.result, str_keys=True)
    except msgspec.ValidationError as error:
        problem = f"the result of {contract.method!r} is not of the type that the interface says: {error}"
        raise MessageFormatError(f"{problem}; {_ADVICE.format(where)}") from None
