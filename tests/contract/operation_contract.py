"""The contract of IOperationStore."""

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from novasvc.errors import OperationConflictError, OperationNotFoundError, OperationStateError
from novasvc.interfaces import IOperationStore
from novasvc.registry.operation import KEPT, LONGEST, NodeChange, Operation, OperationNode, OperationRequest

Fixture = Callable[[TestCase], Awaitable[tuple[Any, Callable[[float], Awaitable[None]]]]]
"""Takes the running test; returns an empty store, and a function that lets seconds pass on the database's clock."""

OPTIONS = {"batch": "10%", "canary": 1, "max_failures": 0, "timeout": 300.0}


class OperationContract(TestCase):
    fixture: Fixture
    store: Any

    async def setUp(self) -> None:
        self.store, self.pass_time = await self.fixture(self)

    def begin(self, *services: int, owner: str = "a", kind: str = "restart") -> Deferred[Operation]:
        nodes = [
            OperationNode(service_id=number, name=f"novasvc-agent@h{number}", position=place, wave=min(place, 1))
            for place, number in enumerate(services)
        ]
        return self.store.begin(
            OperationRequest(kind=kind, options=OPTIONS, owner=owner, operator=f"{owner}@box", nodes=nodes)
        )

    async def states(self, operation: int) -> list[str]:
        return [node.state for node in await self.store.nodes(operation)]

    async def note(self, operation: Operation, *changes: tuple[int, str], owner: str = "a") -> None:
        noted = [NodeChange(service_id=number, state=state) for number, state in changes]  # type: ignore[arg-type]
        await self.store.note(operation.id, owner, noted)

    async def fails(self, error: type[Exception], doing: Deferred[Any], *texts: str) -> None:
        failure = await self.assertFailure(doing, error)
        for text in texts:
            self.assertIn(text, str(failure))

    def test_interface(self) -> None:
        """The store provides IOperationStore."""
        self.assertTrue(verifyObject(IOperationStore, self.store))

    async def test_begin(self) -> None:
        """A new operation runs, and its nodes are pending, in their order."""
        operation = await self.begin(7, 3, 5)
        self.assertEqual((operation.kind, operation.state, operation.owner), ("restart", "running", "a"))
        self.assertEqual((operation.operator, operation.options, operation.reason), ("a@box", OPTIONS, None))
        self.assertEqual(operation.counts, {"pending": 3, "running": 0, "done": 0, "failed": 0, "skipped": 0})
        self.assertTrue(-1 < operation.age < 30 and -1 < operation.silent < 30, operation)
        self.assertIsNone(operation.ended_at)
        nodes = await self.store.nodes(operation.id)
        self.assertEqual([(node.service_id, node.wave) for node in nodes], [(7, 0), (3, 1), (5, 1)])
        self.assertEqual((nodes[0].name, nodes[0].detail, nodes[0].incarnation), ("novasvc-agent@h7", None, None))
        self.assertEqual((await self.store.read(operation.id)).id, operation.id)

    async def test_none(self) -> None:
        """A number that no operation has is an OperationNotFoundError."""
        for doing in (
            self.store.read(4711),
            self.store.nodes(4711),
            self.store.resume(4711, "b", "b@box", False),
            self.store.note(4711, "a", []),
            self.store.abort(4711, "b@box"),
        ):
            await self.fails(OperationNotFoundError, doing, "4711")

    async def test_note(self) -> None:
        """What is noted is read, and counted."""
        operation = await self.begin(1, 2, 3)
        change = NodeChange(service_id=2, state="failed", detail="no answer", incarnation=2**40)
        await self.store.note(operation.id, "a", [change])
        await self.store.note(operation.id, "a", [])
        node = (await self.store.nodes(operation.id))[1]
        self.assertEqual((node.state, node.detail, node.incarnation), ("failed", "no answer", 2**40))
        counts = (await self.store.read(operation.id)).counts
        self.assertEqual(counts, {"pending": 2, "running": 0, "done": 0, "failed": 1, "skipped": 0})

    async def test_texts_of_errors(self) -> None:
        """What a database would refuse in a detail, or in a reason, is escaped or cut."""
        operation = await self.begin(1)
        text = "no file 'a\udcff\0b'"
        change = NodeChange(service_id=1, state="failed", detail=text + "€" * 70_000)
        await self.store.note(operation.id, "a", [change])
        await self.store.end(operation.id, "a", "halted", text)
        detail = (await self.store.nodes(operation.id))[0].detail
        self.assertTrue(detail.startswith("no file 'a\\udcff\\x00b'€€€"), detail[:30])
        self.assertEqual(len(detail), LONGEST)
        self.assertEqual((await self.store.read(operation.id)).reason, "no file 'a\\udcff\\x00b'")

    async def test_conflict(self) -> None:
        """A node belongs to one operation that runs; the error names that operation, its operator and the nodes."""
        first = await self.begin(1, 2)
        await self.fails(
            OperationConflictError, self.begin(2, 3, owner="b"), f"operation {first.id}", "a@box", "novasvc-agent@h2"
        )
        self.assertEqual(len(await self.store.list(10)), 1)

    async def test_released(self) -> None:
        """A node that has ended, and those of an operation that has ended, may be in another one."""
        first = await self.begin(1, 2)
        await self.note(first, (1, "done"))
        second = await self.begin(1, owner="b")
        await self.store.end(first.id, "a", "halted", "node 1 failed")
        await self.begin(2, owner="c")
        self.assertEqual([one.state for one in await self.store.list(10)], ["running", "running", "halted"])
        self.assertEqual((await self.store.read(first.id)).reason, "node 1 failed")
        self.assertIsNotNone((await self.store.read(first.id)).ended_at)
        self.assertEqual([one.id for one in await self.store.list(1)], [second.id + 1])

    async def test_race(self) -> None:
        """Of several operations that begin at the same time with one node in common, one runs."""
        beginning = [self.begin(number, 99, 100 + number, owner=str(number)) for number in range(6)]
        outcomes = await DeferredList(beginning, consumeErrors=True)
        self.assertEqual(sum(success for success, _ in outcomes), 1)
        for success, outcome in outcomes:
            if not success:
                outcome.trap(OperationConflictError)
        self.assertEqual(len(await self.store.list(10)), 1)

    async def test_resume(self) -> None:
        """An operation that was halted goes on: nodes that failed are pending again, and those done stay so."""
        operation = await self.begin(1, 2, 3)
        await self.note(operation, (1, "done"), (2, "failed"))
        await self.store.end(operation.id, "a", "halted", "a node failed")
        resumed = await self.store.resume(operation.id, "b", "b@box", False)
        self.assertEqual((resumed.state, resumed.owner, resumed.operator), ("running", "b", "b@box"))
        self.assertEqual((resumed.reason, resumed.ended_at, resumed.id), (None, None, operation.id))
        self.assertEqual(await self.states(operation.id), ["done", "pending", "pending"])
        await self.note(operation, (2, "done"), owner="b")
        await self.store.end(operation.id, "b", "done", None)
        await self.fails(OperationStateError, self.store.resume(operation.id, "b", "b@box", False), "it is done")

    async def test_skip_failed(self) -> None:
        """It may go on without the nodes that failed; why they failed stays."""
        operation = await self.begin(1, 2)
        await self.store.note(operation.id, "a", [NodeChange(service_id=1, state="failed", detail="no answer")])
        await self.store.end(operation.id, "a", "halted", "a node failed")
        await self.store.resume(operation.id, "b", "b@box", True)
        self.assertEqual(await self.states(operation.id), ["skipped", "pending"])
        self.assertEqual((await self.store.nodes(operation.id))[0].detail, "no answer")

    async def test_resume_running(self) -> None:
        """An operation whose command was just heard of is not taken over."""
        operation = await self.begin(1)
        await self.fails(OperationStateError, self.store.resume(operation.id, "b", "b@box", False), "its command runs")

    async def test_resume_unattended(self) -> None:
        """One whose command is silent is taken over, and the former command can write nothing more."""
        operation = await self.begin(1, 2)
        await self.note(operation, (1, "running"))
        await self.pass_time(31)
        silent = await self.store.read(operation.id)
        self.assertTrue(silent.is_unattended)
        await self.fails(OperationConflictError, self.begin(1, owner="c"), "nothing was heard", "fleet resume")
        resumed = await self.store.resume(operation.id, "b", "b@box", False)
        self.assertLess(resumed.silent, 30)
        self.assertEqual(await self.states(operation.id), ["running", "pending"])
        change = [NodeChange(service_id=1, state="done")]
        await self.fails(OperationStateError, self.store.note(operation.id, "a", change), "has resumed it")
        await self.fails(OperationStateError, self.store.end(operation.id, "a", "done", None), "has resumed it")
        self.assertEqual(await self.states(operation.id), ["running", "pending"])
        await self.fails(OperationConflictError, self.begin(2, owner="c"), "b@box")

    async def test_resume_race(self) -> None:
        """Of two commands that resume at the same time, one does."""
        operation = await self.begin(1)
        await self.store.end(operation.id, "a", "halted", "interrupted")
        resuming = [self.store.resume(operation.id, owner, f"{owner}@box", False) for owner in "bcd"]
        outcomes = await DeferredList(resuming, consumeErrors=True)
        self.assertEqual(sum(success for success, _ in outcomes), 1)
        for success, outcome in outcomes:
            if not success:
                outcome.trap(OperationStateError)

    async def test_resume_conflict(self) -> None:
        """An operation is not resumed while another one has its nodes."""
        operation = await self.begin(1, 2)
        await self.store.end(operation.id, "a", "halted", "interrupted")
        await self.begin(2, owner="c")
        await self.fails(
            OperationConflictError, self.store.resume(operation.id, "a", "a@box", False), "c@box", "novasvc-agent@h2"
        )
        self.assertEqual((await self.store.read(operation.id)).state, "halted")

    async def test_abort(self) -> None:
        """An aborted operation ends for good: its command can write nothing more, and it cannot be resumed."""
        operation = await self.begin(1, 2)
        aborted = await self.store.abort(operation.id, "b@box")
        self.assertEqual((aborted.state, aborted.reason), ("aborted", "aborted by b@box"))
        await self.fails(OperationStateError, self.store.note(operation.id, "a", []), "aborted by b@box")
        await self.fails(OperationStateError, self.store.resume(operation.id, "b", "b@box", False), "it is aborted")
        await self.fails(OperationStateError, self.store.abort(operation.id, "b@box"), "already")
        await self.begin(1, 2, owner="c")

    async def test_many(self) -> None:
        """An operation may have ten thousand nodes."""
        operation = await self.begin(*range(1, 10_001))
        self.assertEqual(operation.counts["pending"], 10_000)
        self.assertEqual(len(await self.store.nodes(operation.id)), 10_000)

    async def test_kept(self) -> None:
        """An operation that ended long ago is deleted when another one begins."""
        old, ended = await self.begin(1), await self.begin(2)
        await self.store.end(old.id, "a", "done", None)
        await self.pass_time(KEPT + 10)
        await self.store.end(ended.id, "a", "halted", "interrupted")
        await self.begin(3)
        self.assertEqual([one.id for one in await self.store.list(10)], [ended.id + 1, ended.id])
        await self.fails(OperationNotFoundError, self.store.nodes(old.id), str(old.id))


def make_operation_tests(fixture: Fixture) -> type[OperationContract]:
    """Make the tests of a provider of IOperationStore.

    :param fixture: see Fixture.
    :return: a TestCase, to be subclassed under a name that says whose it is.
    """
    return type("OperationTests", (OperationContract,), {"fixture": staticmethod(fixture)})
