"""Show the signatures of nova.service on constructors that take more parameters.

``inspect.signature`` and ``help`` show the parameters that Nova's code relies on. The framework's own, such as
``runtime=``, are accepted all the same and are described in the docstring.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def hides(*names: str) -> Callable[[_Function], _Function]:
    """Leave parameters out of a function's visible signature.

    :param names: names of parameters, which must have defaults.
    """

    def hide(function: _Function) -> _Function:
        whole = inspect.signature(function)
        shown = [parameter for name, parameter in whole.parameters.items() if name not in names]
        function.__signature__ = whole.replace(parameters=shown)  # type: ignore[attr-defined]
        return function

    return hide
