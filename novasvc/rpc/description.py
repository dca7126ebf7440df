"""Describe exposed methods, for people and for programs that write clients."""

import inspect
from collections.abc import Iterable
from typing import Any

from novasvc.rpc.endpoint import Method


def describe_methods(methods: Iterable[Method]) -> list[dict[str, Any]]:
    """Describe methods, in the order of their names; those of the framework, which have a namespace, last.

    :return: {"method", "namespace": str or None, "version", "signature": "(item: str, amount: int = 1) -> str",
        "summary": the first line of the docstring, "raises": names of the expected exceptions, "idempotent": bool,
        "timeout": seconds or None, "allow": what a caller needs, or None, "schema": see
        :meth:`novasvc.rpc.contract.Contract.schema`, or None} each.
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
        }
        for method in ordered
    ]


def _signature(method: Method) -> str:
    """Return the signature as callers see it: without the context."""
    try:
        signature = inspect.signature(method.function, eval_str=True)
    except Exception:  # noqa: BLE001 - the context's annotation may be one that only type checkers can resolve
        signature = inspect.signature(method.function)
    parameters = list(signature.parameters.values())[1:]
    return str(signature.replace(parameters=parameters)).replace(f"{method.function.__module__}.", "")
