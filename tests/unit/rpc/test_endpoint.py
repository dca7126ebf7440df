"""Tests for novasvc.rpc.endpoint."""

import functools
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import DeclarationError, NoSuchMethodError, UnsupportedVersionError
from novasvc.rpc.endpoint import MAX_CACHED


class Base:
    @rpc.expose
    def inherited(self, context: RequestContext) -> str:
        return "inherited"

    @rpc.expose
    def hidden(self, context: RequestContext) -> str:
        return "hidden"

    @rpc.expose
    def replaced(self, context: RequestContext) -> str:
        return "base"


class Compute(Base):
    @property
    def fragile(self) -> None:
        raise AssertionError

    @rpc.expose(version="1.3")
    def newer(self, context: RequestContext) -> str:
        return "newer"

    @rpc.expose(version="2.0", namespace="other")
    def elsewhere(self, context: RequestContext) -> str:
        return "elsewhere"

    def hidden(self, context: RequestContext) -> str:
        return "not decorated here"

    @rpc.expose
    def replaced(self, context: RequestContext) -> str:
        return "compute"

    def undecorated(self, context: RequestContext) -> None: ...

    def _private(self, context: RequestContext) -> None: ...


class FindTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.endpoints = rpc.Endpoints(Compute())

    def call(self, name: str, version: str | None = "1.0", namespace: str | None = None) -> Any:
        return self.endpoints.find(namespace, name, version).function(RequestContext())

    def test_found_bound(self) -> None:
        """A version written in many ways is served each time, and the cache of lookups is bounded."""
        for number in range(MAX_CACHED + 10):
            self.assertEqual(self.call("newer", f"1.0.{number}"), "newer")
        self.assertEqual(len(self.endpoints.cache), MAX_CACHED)

    def test_found(self) -> None:
        """A decorated method is found, inherited or not, by its name, namespace and version."""
        self.assertEqual(self.call("inherited"), "inherited")
        self.assertEqual(self.call("replaced"), "compute")
        self.assertEqual(self.call("newer", "1.3"), "newer")
        self.assertEqual(self.call("elsewhere", "2.0", "other"), "elsewhere")

    def test_all(self) -> None:
        """Iterating yields the exposed methods."""
        names = sorted(method.name for method in self.endpoints)
        self.assertEqual(names, ["elsewhere", "inherited", "newer", "replaced"])

    def test_not_found(self) -> None:
        """Only decorated methods can be found."""
        for name in ("undecorated", "_private", "hidden", "fragile", "__init__", "__class__", "elsewhere", "", "a.b"):
            error = self.assertRaises(NoSuchMethodError, self.endpoints.find, None, name, "1.0")
            self.assertEqual(error.method, name)

    def test_similar(self) -> None:
        """An unknown name that is similar to a method of the same namespace is answered with that."""
        error = self.assertRaises(NoSuchMethodError, self.endpoints.find, None, "inherted", "1.0")
        self.assertEqual(error.similar, "inherited")
        self.assertIn("no method 'inherted'; did you mean 'inherited'?", str(error))
        self.assertEqual(self.assertRaises(NoSuchMethodError, self.endpoints.find, None, "zz", "1.0").similar, "")
        self.assertRaises(NoSuchMethodError, self.endpoints.find, None, "inherited" * 100_000, "1.0")

    def test_versions(self) -> None:
        """An interface serves up to the highest version of its methods, all of them alike."""
        for version in ("1.0", "1.2", "1.2.9", "1.3"):
            self.assertEqual(self.call("inherited", version), "inherited")
        for version in ("1.3.5", "1.4", "2.0", "0.9", None, "1", "x", ""):
            error = self.assertRaises(UnsupportedVersionError, self.endpoints.find, None, "inherited", version)
            self.assertEqual((error.version, error.method, error.namespace), (str(version), "inherited", None))

    def test_namespaces(self) -> None:
        """An unknown namespace is an unsupported version; None and the empty namespace differ."""
        for namespace in ("", "unknown"):
            error = self.assertRaises(UnsupportedVersionError, self.endpoints.find, namespace, "inherited", "1.0")
            self.assertEqual(error.namespace, namespace)

    def test_what_would_fit(self) -> None:
        """The error names the interfaces that have the method, or else all interfaces."""

        def served(namespace: str | None, name: str, version: str) -> str:
            try:
                self.endpoints.find(namespace, name, version)
            except (NoSuchMethodError, UnsupportedVersionError) as error:
                self.assertTrue(not error.served or error.served in str(error))
                return error.served
            raise AssertionError

        self.assertEqual(served(None, "inherited", "1.4"), "1.0 to 1.3")
        self.assertEqual(served("unknown", "elsewhere", "1.0"), "2.0 of namespace 'other'")
        self.assertEqual(served("unknown", "unknown", "1.0"), "1.0 to 1.3, 2.0 of namespace 'other'")
        self.assertEqual(served(None, "elsewhere", "1.0"), "2.0 of namespace 'other'")
        self.assertEqual(served(None, "unknown", "1.0"), "")

    def test_many(self) -> None:
        """The error's text is bounded, however many interfaces there are."""

        def endpoint(number: int) -> object:
            @rpc.expose(namespace=f"n{number}", version="1.0.1")
            def method(self: Any, context: RequestContext) -> None: ...

            return type("Endpoint", (), {"method": method})()

        endpoints = rpc.Endpoints(*(endpoint(number) for number in range(20)))
        error = self.assertRaises(UnsupportedVersionError, endpoints.find, None, "method", "1.0")
        self.assertTrue(error.served.startswith("1.0 to 1.0.1 of namespace 'n0', "), error.served)
        self.assertTrue(error.served.endswith(" and 12 more"), error.served)

    def test_own_versions(self) -> None:
        """Each object serves its own version."""
        endpoints = rpc.Endpoints(Compute(), rpc.BaseAPI("compute"))
        self.assertRaises(UnsupportedVersionError, endpoints.find, "baseapi", "ping", "1.2")
        self.assertEqual(endpoints.find("baseapi", "ping", "1.1").name, "ping")


class DeclarationTests(SynchronousTestCase):
    def refused(self, *objects: object) -> str:
        return str(self.assertRaises(DeclarationError, rpc.Endpoints, *objects))

    def test_duplicate(self) -> None:
        """Two methods that would answer the same call are refused; the error names both."""

        class Other:
            @rpc.expose(version="1.7")
            def newer(self, context: RequestContext) -> None: ...

        problem = self.refused(Compute(), Other())
        self.assertIn("Compute.newer", problem)
        self.assertIn("Other.newer", problem)

    def test_majors(self) -> None:
        """Two majors of a method may be served side by side."""

        class Next:
            @rpc.expose(version="2.1")
            def newer(self, context: RequestContext) -> str:
                return "next"

        endpoints = rpc.Endpoints(Compute(), Next())
        answers = [endpoints.find(None, "newer", want).function(RequestContext()) for want in ("1.0", "2.0")]
        self.assertEqual(answers, ["newer", "next"])

    def test_private_alias(self) -> None:
        """A private name for a decorated method is refused."""

        class Alias:
            @rpc.expose
            def public(self, context: RequestContext) -> None: ...

            _alias = public

        self.assertIn("Alias._alias", self.refused(Alias()))

    def test_without_self(self) -> None:
        """Static and class methods are refused."""

        class Static:
            @staticmethod
            @rpc.expose
            def method(first: Any, context: RequestContext) -> None: ...

        class Class:
            @classmethod
            @rpc.expose
            def method(cls, context: RequestContext) -> None: ...

        self.assertIn("Static.method", self.refused(Static()))
        self.assertIn("Class.method", self.refused(Class()))

    def test_wrapped(self) -> None:
        """A method stays exposed under a second decorator that copies its attributes."""

        def shout(function: Any) -> Any:
            @functools.wraps(function)
            def shouted(*args: Any, **kwargs: Any) -> str:
                return str(function(*args, **kwargs)).upper()

            return shouted

        class Shouting:
            @shout
            @rpc.expose
            def method(self, context: RequestContext) -> str:
                return "hello"

        self.assertEqual(rpc.Endpoints(Shouting()).find(None, "method", "1.0").function(RequestContext()), "HELLO")

    def test_nothing(self) -> None:
        """An object without decorated methods is accepted."""
        self.assertEqual(list(rpc.Endpoints(object())), [])
