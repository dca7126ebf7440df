"""Who may call an exposed method: the option ``allow`` of ``@expose``."""

import inspect
from collections.abc import Callable, Collection
from typing import Any

import attrs

from novasvc.errors import DeclarationError
from novasvc.middleware import Invocation
from novasvc.rpc.identity.keys import IDENTITY

Check = Callable[[str, Invocation], bool]
"""Decide about a caller's identity and its call: its name, context and arguments."""


@attrs.frozen
class Allowed:
    """Who may call a method, as ``@expose(allow=...)`` says.

    :param names: identities; empty if a function decides.
    :param check: the function, or None.
    :param operators: the operators of the fleet, as the setting rpc_operators of the server has them; everybody, where
        no callers' keys are known.
    """

    names: frozenset[str]
    check: Check | None = None
    operators: bool = False

    def __str__(self) -> str:
        """Describe what a caller needs: "the identity admin or ops"."""
        if self.operators:
            return "an identity of rpc_operators"
        if self.check is not None:
            return f"the consent of {getattr(self.check, '__qualname__', self.check)}"
        return f"the identity {' or '.join(sorted(self.names))}"


Allow = str | Collection[str] | Check | Allowed
"""The option ``allow``: an identity, a set of identities, or a check; or what was read of one."""

OPERATORS = Allowed(frozenset(), operators=True)
"""Who may call the methods of a node that change its process."""


def read_allow(allow: Any, where: str) -> Allowed:
    """Read the option ``allow`` of ``@expose``.

    :raises DeclarationError: it is no identity, no set of identities and no function.
    """
    if isinstance(allow, Allowed):
        return allow
    names = {allow} if isinstance(allow, str) else allow
    if isinstance(names, set | frozenset | list | tuple):
        if names and all(isinstance(name, str) and IDENTITY.fullmatch(name) for name in names):
            return Allowed(frozenset(names))
    elif callable(allow) and not inspect.iscoroutinefunction(allow):
        return Allowed(frozenset(), allow)
    remedy = 'give an identity such as "admin", a set of them, or a function (identity, invocation) -> bool'
    raise DeclarationError(where, f"allow={allow!r:.100} says nobody who could call", remedy)
