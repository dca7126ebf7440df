"""Describe exposed methods, for people and for programs that write clients."""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from novasvc.rpc.endpoint import Method
from novasvc.rpc.failures.error_classes import error_classes


def describe_methods(methods: Iterable[Method]) -> list[dict[str, Any]]:
    """Describe methods, in the order of their names; those of the framework, which have a namespace, last.

    :return: {"method", "namespace": str or None, "version", "signature": "(item: str, amount: int = 1) -> str",
        "summary": the first line of the docstring, "raises": names of the expected exceptions, "idempotent": bool,
        "timeout": seconds or None, "allow": what a caller needs, or None, "schema": see
        :meth:`novasvc.rpc.contracts.contract.Contract.schema`, or None, "parameters": see :func:`_parameters`} each.
    """
    ordered = sorted(methods, key=lambda method: (method.exposure.namespace or "", method.name))
    return [
        {
            "method": method.name,
            "namespace": method.exposure.namespace,
            "version": ".".join(map(str, method.version[:2])),
            "signature": _signature(method),
            "summary": (inspect.getdoc(method.function) or "").partition("\n")[0],
            "raises": [error.__name__ for error in method.exposure.expected],
            "idempotent": method.exposure.idempotent,
            "timeout": method.exposure.timeout,
            "allow": None if method.exposure.allow is None else str(method.exposure.allow),
            "schema": None if method.contract is None else method.contract.schema(),
            "parameters": list(_parameters(method)),
        }
        for method in ordered
    ]


def describe_errors(methods: Iterable[Method]) -> list[dict[str, str]]:
    """Describe the registered errors that methods name in ``expected``, in the order of their names on the wire.

    :return: {"name": "OutOfStock", "module": on the wire, "signature": "(item: str, left: int = 0)", or "" if the
        constructor is that of a built-in class, "summary": the first line of the docstring} each.
    """
    expected = {error for method in methods for error in method.exposure.expected}
    named = {name: error for error in expected if (name := error_classes.name_of(error)) is not None}
    return [
        {
            "name": name.name,
            "module": name.module,
            "signature": _constructor(error),
            "summary": inspect.cleandoc(error.__doc__ or "").partition("\n")[0],
        }
        for name, error in sorted(named.items(), key=lambda item: item[0])
    ]


def _constructor(error: type[Exception]) -> str:
    if not inspect.isfunction(error.__init__):
        return ""
    signature = inspect.signature(error.__init__)
    parameters = list(signature.parameters.values())[1:]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def _parameters(method: Method) -> Iterator[dict[str, Any]]:
    """Yield what a call passes, in order: {"name", "required": bool, "keyword_only": bool, "open": bool}.

    A parameter that is open takes arguments of any further names. "default" is there if there is one that JSON has.
    """
    for each in list(inspect.signature(method.function).parameters.values())[1:]:
        if each.kind is not each.VAR_POSITIONAL:
            optional = each.default is not each.empty or each.kind is each.VAR_KEYWORD
            row = {
                "name": each.name,
                "required": not optional,
                "keyword_only": each.kind is each.KEYWORD_ONLY,
                "open": each.kind is each.VAR_KEYWORD,
            }
            yield {**row, "default": each.default} if type(each.default) in _PLAIN else row


_PLAIN = (type(None), bool, int, str)


def _signature(method: Method) -> str:
    """Return the signature as callers see it: without the context."""
    try:
        signature = inspect.signature(method.function, eval_str=True)
    except Exception:  # noqa: BLE001 - the context's annotation may be one that only type checkers can resolve
        signature = inspect.signature(method.function)
    parameters = list(signature.parameters.values())[1:]
    return str(signature.replace(parameters=parameters)).replace(f"{method.function.__module__}.", "")
