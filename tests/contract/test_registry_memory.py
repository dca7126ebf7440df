"""The contract of IServiceRegistry, in memory."""

from twisted.internet.defer import DeferredList
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from novasvc.testing import MemoryRegistry
from tests.contract.registry_contract import make_registry_tests
from tests.contract.verdict_contract import DOWN_TIME


async def memory_registry(test: TestCase) -> MemoryRegistry:
    registry = MemoryRegistry(Clock(), service_down_time=DOWN_TIME)
    await registry.open()
    return registry


class MemoryRegistryTests(make_registry_tests(memory_registry)):  # type: ignore[misc]
    """Tests for novasvc.testing.MemoryRegistry."""

    async def test_ten_thousand_racers(self) -> None:
        """Of ten thousand starts of one service exactly one wins."""
        racing = [self.begin(f"owner {racer}", machine=f"m{racer}") for racer in range(10_000)]
        outcomes = await DeferredList(racing, consumeErrors=True)
        self.assertEqual([outcome.incarnation.number for done, outcome in outcomes if done], [1])
