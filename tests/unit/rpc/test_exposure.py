"""Tests for novasvc.rpc.exposure."""

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import DeclarationError, InvalidArgumentsError
from novasvc.rpc.exposure import Exposure, exposure_of


class Host:
    @rpc.expose
    def bare(self, context: RequestContext) -> None: ...

    @rpc.expose(
        version="2.3", namespace="n", blocking=True, idempotent=True, timeout=1.5, expected=(LookupError, ValueError)
    )
    def full(self, ctxt: RequestContext, needed: int, given: int = 1, *, also: int, wanted: int = 2) -> None: ...

    @rpc.expose()
    async def anything(self, _context: RequestContext, needed: int, **others: Any) -> None: ...


def exposure(function: object) -> Exposure:
    found = exposure_of(function)
    assert found is not None
    return found


class ExposeTests(SynchronousTestCase):
    def test_terms(self) -> None:
        """The decorator records its options, and returns the method unchanged."""
        terms = exposure(Host.full)
        self.assertEqual((terms.version, terms.namespace, terms.timeout), ("2.3", "n", 1.5))
        self.assertEqual((terms.blocking, terms.idempotent, terms.expected), (True, True, (LookupError, ValueError)))
        self.assertIsNone(Host().bare(RequestContext()))  # type: ignore[func-returns-value]

    def test_defaults(self) -> None:
        """A bare decorator exposes version 1.0 of the interface without a name, at-most-once."""
        terms = exposure(Host.bare)
        self.assertEqual((terms.version, terms.namespace, terms.timeout), ("1.0", None, None))
        self.assertEqual((terms.blocking, terms.idempotent, terms.expected), (False, False, ()))

    def test_not_exposed(self) -> None:
        """An undecorated attribute is not exposed."""
        for attribute in (SynchronousTestCase.run, Host, None, 1, object()):
            self.assertIsNone(exposure_of(attribute))

    def refused(self, function: Any, **terms: Any) -> DeclarationError:
        decorate = rpc.expose(**terms) if terms else rpc.expose
        error = self.assertRaises(DeclarationError, decorate, function)
        self.assertIn("test_exposure", error.subject)
        return error

    def test_refused_terms(self) -> None:
        """Invalid options raise DeclarationError at the decoration."""

        def method(self: Any, context: RequestContext) -> None: ...

        async def coroutine(self: Any, context: RequestContext) -> None: ...

        for terms in ({"version": "1"}, {"version": 1.0}, {"version": ""}):
            self.assertIn("version", str(self.refused(method, **terms)))
        for timeout in (0, -1, float("nan")):
            self.assertIn("timeout", str(self.refused(method, timeout=timeout)))
        for expected in (LookupError, [LookupError], (1,), (BaseException,)):
            self.assertIn("expected", str(self.refused(method, expected=expected)))
        self.assertIn("block", str(self.refused(coroutine, blocking=True)))

    def test_own_namespace(self) -> None:
        """The namespace of novasvc's own messages is refused: calls to it would never be answered."""

        def method(self: object, context: object) -> None: ...

        self.assertIn("that of novasvc's own messages", str(self.refused(method, namespace="novasvc")))

    def test_refused_methods(self) -> None:
        """A method with an unsuitable signature raises DeclarationError."""

        def _private(self: Any, context: RequestContext) -> None: ...

        def no_context(self: Any, name: str) -> None: ...

        def nothing() -> None: ...

        def keyword_context(self: Any, *, context: RequestContext) -> None: ...

        def positional(self: Any, context: RequestContext, name: str, /) -> None: ...

        self.assertIn("private", str(self.refused(_private)))
        for function in (no_context, nothing, keyword_context):
            self.assertIn("context", str(self.refused(function)))
        self.assertIn("positional-only", str(self.refused(positional)))

    def test_refused_objects(self) -> None:
        """Only functions can be decorated."""
        for thing in (property(lambda self: 1), classmethod(lambda cls: 1), Host, len):
            self.assertRaises(DeclarationError, rpc.expose, thing)


class CheckTests(SynchronousTestCase):
    def problem(self, function: object, args: dict[str, Any]) -> str:
        error = self.assertRaises(InvalidArgumentsError, exposure(function).check, "m", args)
        self.assertEqual(error.method, "m")
        return error.problem

    def test_fitting(self) -> None:
        """Arguments are valid if all required ones are present and all are allowed."""
        exposure(Host.bare).check("m", {})
        exposure(Host.full).check("m", {"needed": 1, "also": 2})
        exposure(Host.full).check("m", {"needed": 1, "also": 2, "given": 3, "wanted": 4})
        exposure(Host.anything).check("m", {"needed": 1, "whatever": 2})

    def test_misfitting(self) -> None:
        """The error names the missing and the unknown arguments."""
        self.assertEqual(self.problem(Host.bare, {"b": 1, "a": 2}), "unknown: a, b")
        self.assertEqual(self.problem(Host.full, {"needed": 1}), "missing: also")
        self.assertEqual(self.problem(Host.full, {"x": 1}), "missing: also, needed; unknown: x")

    def test_reserved(self) -> None:
        """A caller cannot pass self or the context, not even to a method with **kwargs."""
        self.assertEqual(
            self.problem(Host.anything, {"needed": 1, "self": 2, "_context": 3}), "unknown: _context, self"
        )
        self.assertEqual(self.problem(Host.bare, {"context": 1}), "unknown: context")

    def test_long(self) -> None:
        """The error's text is bounded, however many and long the names are."""
        problem = self.problem(Host.bare, {str(number) * 1000: 1 for number in range(100)})
        self.assertLess(len(problem), 1000)
        self.assertIn("and 92 more", problem)
