"""Tests for novasvc.run.greeting."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc import Manager, RequestContext, rpc
from novasvc.config import load
from novasvc.run.greeting import greeting


class Till(Manager):
    @rpc.expose
    def empty(self, context: RequestContext) -> None:
        """Do something that nobody should try."""


class Stock(Till):
    @rpc.expose(idempotent=True)
    def add(self, context: RequestContext, item: str) -> None:
        """Take an argument."""

    @rpc.expose(idempotent=True, allow="owner")
    def audit(self, context: RequestContext) -> None:
        """Refuse those who may not."""

    @rpc.expose(idempotent=True)
    def count(self, context: RequestContext) -> int:
        """Change nothing."""
        return 1


class GreetingTests(SynchronousTestCase):
    def tries(self, manager: type) -> str:
        options = {"manager": f"{__name__}.{manager.__name__}", "topic": "shop"}
        return greeting(load((), {}, options)).partition("  try ")[2]

    def test_call(self) -> None:
        """The call that it suggests is idempotent, needs no arguments, and is allowed to everybody."""
        self.assertIn("call shop count\n", self.tries(Stock))

    def test_no_call(self) -> None:
        """Without such a method it suggests no call."""
        tries = self.tries(Till)
        self.assertNotIn("call", tries)
        self.assertIn("ping shop\n", tries)
        self.assertIn("describe shop\n", tries)
