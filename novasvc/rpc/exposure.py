"""The decorator that exposes a method to RPC callers, and the options it records."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar, overload

import attrs

from novasvc.errors import DeclarationError
from novasvc.listing import list_some
from novasvc.rpc.errors import InvalidArgumentsError
from novasvc.rpc.failures.error_classes import register_expected
from novasvc.rpc.identity.allowed import Allow, Allowed, read_allow
from novasvc.rpc.version import parse_version

_Function = TypeVar("_Function", bound=Callable[..., Any])

INTERNAL_NAMESPACE = "novasvc"
"""The namespace of internal messages; no method can have it."""

_MARK = "__novasvc_exposure__"
_CONTEXT_NAMES = frozenset({"context", "ctxt", "ctx"})
_MAX_SHOWN, _MAX_LENGTH = 8, 64


@attrs.frozen
class Exposure:
    """The options of one exposed method; see :func:`expose`.

    :param required: names of the arguments that a call must pass.
    :param allowed: names of the arguments that a call may pass; None allows any except ``reserved``.
    :param reserved: the names of ``self`` and of the context, which a call must not pass.
    :param allow: who may call it; None for everybody.
    :param counted: whether its calls are counted and recorded.
    """

    version: str
    namespace: str | None
    blocking: bool
    idempotent: bool
    timeout: float | None
    cancellable: bool
    expected: tuple[type[Exception], ...]
    required: frozenset[str]
    allowed: frozenset[str] | None
    reserved: frozenset[str]
    allow: Allowed | None = None
    counted: bool = True

    def check(self, method: str, args: Mapping[str, Any]) -> None:
        """Check a call's arguments against the method's signature.

        :param method: the method's name, for the error.
        :param args: the arguments by name.
        :raises InvalidArgumentsError: arguments are missing or unknown.
        """
        names = args.keys()
        if names == self.required:
            return
        missing = self.required - names
        unknown = names - self.allowed if self.allowed is not None else names & self.reserved
        if missing or unknown:
            found = {"missing": missing, "unknown": unknown}
            problems = [f"{what}: {_format_names(names)}" for what, names in found.items() if names]
            raise InvalidArgumentsError(method, "; ".join(problems))


@overload
def expose(function: _Function, /) -> _Function: ...


@overload
def expose(
    *,
    version: str = "1.0",
    namespace: str | None = None,
    blocking: bool = False,
    idempotent: bool = False,
    timeout: float | None = None,
    cancellable: bool = True,
    expected: tuple[type[Exception], ...] = (),
    allow: Allow | None = None,
    counted: bool = True,
) -> Callable[[_Function], _Function]: ...


def expose(
    function: Callable[..., Any] | None = None,
    /,
    *,
    version: str = "1.0",
    namespace: str | None = None,
    blocking: bool = False,
    idempotent: bool = False,
    timeout: float | None = None,
    cancellable: bool = True,
    expected: tuple[type[Exception], ...] = (),
    allow: Allow | None = None,
    counted: bool = True,
) -> Callable[..., Any]:
    """Expose a method to RPC callers. Use it bare or with options.

    The method takes ``(self, context, **arguments)``, and returns a value that JSON can hold, or a Deferred
    or a coroutine of one. Callers cannot reach a method without this decorator.

    :param version: "major.minor" of the interface that added or last changed the method. An interface (the
        methods of one object with the same namespace and major version) serves the highest of its versions.
    :param namespace: the interface's name; None is the interface without a name.
    :param blocking: run the method in the thread pool, because it blocks.
    :param idempotent: the method may run more than once. Its message is acknowledged after the reply is
        published (at-least-once), so it runs again after a crash. The message for any other method is
        acknowledged when the method begins (at-most-once).
    :param timeout: seconds, > 0, after which the method is cancelled and the caller gets a
        MethodTimeoutError; None for no limit. The caller's deadline applies as well.
    :param cancellable: cancel the method when its caller cancels the call; see :mod:`novasvc.rpc.cancellation`. A
        deadline cancels it in any case. A blocking method cannot be cancelled once its thread has begun.
    :param expected: exception classes that report a caller's mistake; logged at debug level, without a traceback.
        They are registered, as by :func:`novasvc.rpc.error`; callers in other processes have to register them too.
    :param allow: the callers that may call the method: an identity such as "admin", a set of them, or a function that
        takes the identity and a :class:`novasvc.middleware.Invocation` and returns whether they may. The identity is
        that of the key which signed the call; see the settings ``rpc_callers_file`` and ``rpc_signing_key_file``. Other
        callers get a NotAllowedError. None allows everybody who reaches the service. While the method runs,
        ``novasvc.rpc.identity.authorization.current_caller.get()`` is the identity.
    :param counted: count its calls, and record them in the flight recorder. False is for questions of monitoring, which
        are asked often, and would hide what a service does.
    :raises DeclarationError: the name is private, the context parameter is missing, or an option is not valid; or
        another class is registered under the name of an expected one.
    """

    def decorate(function: _Function) -> _Function:
        where = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
        required, allowed, reserved = read_signature(function, where, blocking=blocking)
        try:
            parse_version(version)
        except (TypeError, ValueError):
            raise DeclarationError(
                where, f"version={version!r} is not a version", 'write "major.minor", such as "1.0"'
            ) from None
        if namespace == INTERNAL_NAMESPACE:
            problem = f"the namespace {namespace!r} is that of novasvc's own messages"
            raise DeclarationError(where, problem, "choose another")
        if timeout is not None and not timeout > 0:
            raise DeclarationError(where, f"timeout={timeout!r} is not above 0", "give seconds, or None for no limit")
        exposure = Exposure(
            version=version,
            namespace=namespace,
            blocking=blocking,
            idempotent=idempotent,
            timeout=timeout,
            cancellable=cancellable,
            expected=_exceptions(expected, where),
            required=required,
            allowed=allowed,
            reserved=reserved,
            allow=None if allow is None else read_allow(allow, where),
            counted=counted,
        )
        setattr(function, _MARK, exposure)
        return function

    return decorate if function is None else decorate(function)


def exposure_of(attribute: object) -> Exposure | None:
    """Return the options of a class attribute that is exposed, or None."""
    if isinstance(attribute, staticmethod | classmethod):
        attribute = attribute.__func__
    found = getattr(attribute, _MARK, None) if callable(attribute) else None
    return found if isinstance(found, Exposure) else None


def read_signature(
    function: Callable[..., Any], where: str, *, blocking: bool
) -> tuple[frozenset[str], frozenset[str] | None, frozenset[str]]:
    """Return the names of required, allowed (None is any) and reserved arguments.

    :raises DeclarationError: the function cannot be exposed.
    """
    if not inspect.isfunction(function):
        problem = f"a {type(function).__name__} cannot be exposed"
        raise DeclarationError(where, problem, "put @rpc.expose directly above a plain method")
    if function.__name__.startswith("_"):
        raise DeclarationError(where, "a private method cannot be exposed", "give it a name without the underscore")
    if blocking and inspect.iscoroutinefunction(function):
        raise DeclarationError(
            where, "a coroutine cannot be blocking", "remove blocking=True, or make it a plain method"
        )
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(function).parameters.values())
    own, others = parameters[:2], parameters[2:]
    if [p.kind in positional for p in own] != [True, True] or own[1].name.lstrip("_") not in _CONTEXT_NAMES:
        raise DeclarationError(where, "its first parameters are not (self, context)", "add them")
    if any(p.kind is inspect.Parameter.POSITIONAL_ONLY for p in others):
        raise DeclarationError(where, "it has positional-only parameters", "remove the /: arguments are passed by name")
    named = [p for p in others if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in others)
    return (
        frozenset(p.name for p in named if p.default is p.empty),
        None if takes_any else frozenset(p.name for p in named),
        frozenset(p.name for p in own),
    )


def _format_names(names: AbstractSet[str]) -> str:
    """Format argument names for an error, shortened: a caller may send any number, of any length."""
    short = [name if len(name) <= _MAX_LENGTH else f"{name[:_MAX_LENGTH]}..." for name in sorted(names)]
    return list_some(short, _MAX_SHOWN)


def _exceptions(expected: object, where: str) -> tuple[type[Exception], ...]:
    if isinstance(expected, tuple) and all(isinstance(e, type) and issubclass(e, Exception) for e in expected):
        register_expected(expected)
        return expected
    raise DeclarationError(where, f"expected={expected!r} is not a tuple of exception classes", "give a tuple")


def exposed_attributes(kind: Any) -> Iterator[tuple[str, object, Exposure]]:
    """Yield the exposed attributes of a class, in the order of their names: name, attribute as defined, options."""
    for name in dir(kind):
        attribute = inspect.getattr_static(kind, name)
        exposure = exposure_of(attribute)
        if exposure is not None:
            yield name, attribute, exposure


def safe_without_arguments(kind: Any) -> list[str]:
    """Return the names of a class's methods that anybody may call to try them, in the order of their names.

    They take only a context, and are idempotent: a method that is not may do what nobody wants twice, or at all.
    """
    return [
        name
        for name, _, exposure in exposed_attributes(kind)
        if exposure.idempotent
        and exposure.allow is None
        and not exposure.required
        and exposure.namespace is None
        and exposure.version[0] == "1"
    ]
