"""Signatures as nova.service has them, on constructors that take more.

``inspect.signature`` and ``help`` show what Nova's code may rely on. What the framework passes to itself, such as
``runtime=``, is taken all the same and is in the docstring.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def hides(*names: str) -> Callable[[_Function], _Function]:
    """Leave parameters out of the signature that a function shows.

    :param names: of the parameters; each has a default.
    """

    def hide(function: _Function) -> _Function:
        whole = inspect.signature(function)
        shown = [parameter for name, parameter in whole.parameters.items() if name not in names]
        function.__signature__ = whole.replace(parameters=shown)  # type: ignore[attr-defined]
        return function

    return hide


class ConstructorSignature:
    """As a class's ``__signature__``: that of its ``__init__``, although it has a ``__new__`` that takes anything.

    A subclass shows its own.
    """

    def __get__(self, _instance: object, owner: Callable[..., Any]) -> inspect.Signature:
        """Return the signature without self."""
        whole = inspect.signature(owner.__init__)
        _self, *rest = whole.parameters.values()
        return whole.replace(parameters=rest, return_annotation=inspect.Signature.empty)
