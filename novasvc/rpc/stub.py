"""Typed clients: call a service's methods as the methods of an interface."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from novasvc.context import RequestContext
from novasvc.errors import DeclarationError
from novasvc.rpc.client import Client
from novasvc.rpc.contract import Contract, as_dicts, contract_of
from novasvc.rpc.errors import MessageFormatError

_Interface = TypeVar("_Interface")


def stub(interface: Callable[..., _Interface], client: Client) -> _Interface:
    """Make a client whose methods are those of an interface, so that type checkers and editors know them.

    The interface is a :class:`typing.Protocol`, or any class, whose methods are declared as callers see them::

        class Stock(Protocol):
            def reserve(self, context: RequestContext, item: str, amount: int = 1) -> Deferred[str]: ...


        stock = rpc.stub(Stock, manager.attachments.rpc.prepare(topic="stock"))
        await stock.reserve(context, "tea", amount=2)

    Arguments may be dataclasses, attrs classes, enums and datetimes; the result is converted to the annotated type.

    :param interface: each public method takes a context first. A method that is annotated with ``Deferred[T]`` or
        ``Awaitable[T]`` is called and waited for. One that is annotated with ``None`` is cast.
    :param client: prepared with topic, and with version, namespace or timeout where they differ from the defaults.
    :return: an object with these methods, and no others.
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


def _method(interface: type, name: str, function: Callable[..., Any], client: Client) -> Any:
    where = f"{interface.__module__}.{interface.__qualname__}.{name}"
    signature = inspect.signature(function)
    if len(signature.parameters) < 2:  # noqa: PLR2004 - self and the context
        raise DeclarationError(where, "it takes no context", f"write def {name}(self, context: RequestContext, ...)")
    contract = contract_of(function, name, where)
    casts = contract is not None and contract.result is type(None) and not _waits(function)
    context_name = list(signature.parameters)[1]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs).arguments
        context: RequestContext = bound.pop(context_name)
        del bound[next(iter(signature.parameters))]
        arguments = {key: msgspec.to_builtins(as_dicts(value), str_keys=True) for key, value in bound.items()}
        if casts:
            return client.cast(context, name, **arguments)
        calling = client.call(context, name, **arguments)
        return calling if contract is None else calling.addCallback(_convert, contract)

    return call


def _waits(function: Callable[..., Any]) -> bool:
    """Return whether a method that returns None is annotated to return it later."""
    returned = inspect.signature(function).return_annotation
    return inspect.iscoroutinefunction(function) or (returned is not None and returned != "None")


def _convert(result: Any, contract: Contract) -> Any:
    if contract.result is Any:
        return result
    try:
        return msgspec.convert(result, contract.result, str_keys=True)
    except msgspec.ValidationError as error:
        problem = f"the result of {contract.method!r} is not of the type that the interface says: {error}"
        raise MessageFormatError(problem) from None
