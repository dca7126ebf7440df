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

Allow = str | Collection[str] | Check
"""The option: an identity, a set of identities, or a check."""


@attrs.frozen
class Allowed:
    """Who may call a method, as ``@expose(allow=...)`` says.

    :param names: identities; empty if a function decides.
    :param check: the function, or None.
    """

    names: frozenset[str]
    check: Check | None = None

    def __str__(self) -> str:
        """Describe what a caller needs: "the identity admin or ops"."""
        if self.check is not None:
            return f"the consent of {getattr(self.check, '__qualname__', self.check)}"
        return f"the identity {' or '.join(sorted(self.names))}"


def read_allow(allow: Any, where: str) -> Allowed:
    """Read the option ``allow`` of ``@expose``.

    :raises DeclarationError: it is no identity, no set of identities and no function.
    """
    names = {allow} if isinstance(allow, str) else allow
    if isinstance(names, set | frozenset | list | tuple):
        if names and all(isinstance(name, str) and IDENTITY.fullmatch(name) for name in names):
            return Allowed(frozenset(names))
    elif callable(allow) and not inspect.iscoroutinefunction(allow):
        return Allowed(frozenset(), allow)
    remedy = 'give an identity such as "admin", a set of them, or a function (identity, invocation) -> bool'
    raise DeclarationError(where, f"allow={allow!r:.100} says nobody who could call", remedy)
