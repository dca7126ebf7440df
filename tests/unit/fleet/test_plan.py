"""Tests for novasvc.fleet.plan: waves, canary and failure budget, as values."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from novasvc.fleet.plan import (
    MAX_CONCURRENT,
    Action,
    BatchSize,
    Finish,
    Halt,
    Limits,
    Start,
    Wait,
    make_nodes,
    next_action,
)
from novasvc.registry.operation import OperationNode
from tests.support.fleet_rig import make_incarnation, make_record


def nodes(states: str, limits: Limits) -> list[OperationNode]:
    """Return nodes whose states are those of the letters: pending, running, done, failed, skipped."""
    names: dict[str, Any] = {name[0]: name for name in ("pending", "running", "done", "failed", "skipped")}
    made = make_nodes([make_record(number) for number in range(len(states))], limits)
    return [attrs.evolve(node, state=names[letter]) for node, letter in zip(made, states, strict=True)]


class BatchSizeTests(SynchronousTestCase):
    """Tests for BatchSize."""

    def test_parse(self) -> None:
        """A number of nodes, or a percentage."""
        for text, total, size in (
            ("5", 100, 5),
            ("10%", 100, 10),
            ("10%", 25, 2),
            ("1%", 10, 1),
            ("100%", 7, 7),
            (" 3 ", 2, 3),
        ):
            self.assertEqual(BatchSize.parse(text).of(total), size, text)

    def test_invalid(self) -> None:
        """Anything else is refused, with what is right."""
        for text in ("", "0", "0%", "101%", "-1", "1.5", "10 %", "ten", "%", "1" * 30):
            error = self.assertRaises(ValueError, BatchSize.parse, text)
            self.assertIn("10%", str(error))

    def test_text(self) -> None:
        """It is written as it is read."""
        for text in ("5", "10%"):
            self.assertEqual(str(BatchSize.parse(text)), text)


class WaveTests(SynchronousTestCase):
    """Tests for make_nodes."""

    def test_sizes(self) -> None:
        """The canary is first, and the last wave has what is left."""
        for total, batch, canary, sizes in (
            (10, "4", 1, [1, 4, 4, 1]),
            (10, "4", 0, [4, 4, 2]),
            (3, "10", 5, [3]),
            (0, "10%", 1, []),
            (21, "10%", 1, [1, *[2] * 10]),
            (1, "10%", 1, [1]),
        ):
            limits = Limits(batch=BatchSize.parse(batch), canary=canary)
            made = make_nodes([make_record(number) for number in range(total)], limits)
            self.assertEqual(list(Counter(node.wave for node in made).values()), sizes)

    def test_processes(self) -> None:
        """The services of one process are in one wave."""
        processes = (1, 1, 2, 3, 3, 3, 4, None, None)
        records = [
            make_record(number, incarnation=None if pid is None else make_incarnation(pid=pid))
            for number, pid in enumerate(processes)
        ]
        made = make_nodes(records, Limits(batch=BatchSize(2), canary=1))
        self.assertEqual([node.wave for node in made], [0, 0, 1, 1, 1, 1, 2, 2, 3])

    def test_nodes(self) -> None:
        """Nodes keep their order, and know their waves."""
        made = make_nodes([make_record(number) for number in (7, 3, 5)], Limits(batch=BatchSize(2), canary=1))
        self.assertEqual(
            [(node.service_id, node.position, node.wave) for node in made], [(7, 0, 0), (3, 1, 1), (5, 2, 1)]
        )
        self.assertEqual(made[0].name, "novasvc-agent@h7")

    def test_stored(self) -> None:
        """Limits are read as they were stored; what a newer version has stored is ignored."""
        limits = Limits(batch=BatchSize(3), canary=2, max_failures=4, timeout=7.5)
        self.assertEqual(Limits.from_json({**limits.to_json(), "reason": "x"}), limits)
        self.assertEqual(Limits.from_json({}), Limits())


class NextTests(SynchronousTestCase):
    """Tests for next_action."""

    def after(self, states: str, **given: Any) -> Action:
        limits = Limits(**{"batch": BatchSize(2), "canary": 1, **given})
        return next_action(nodes(states, limits), limits)

    def started(self, states: str, **given: Any) -> Sequence[int]:
        action = self.after(states, **given)
        assert isinstance(action, Start), action
        return [node.position for node in action.nodes]

    def test_canary_first(self) -> None:
        """The canary begins alone, and the next wave only when it is done."""
        self.assertEqual(self.started("ppppp"), [0])
        self.assertEqual(self.after("rpppp"), Wait())
        self.assertEqual(self.started("dpppp"), [1, 2])

    def test_waves(self) -> None:
        """A wave begins when the one before has ended."""
        self.assertEqual(self.after("ddrpp"), Wait())
        self.assertEqual(self.started("dddpp"), [3, 4])
        self.assertEqual(self.after("ddddd"), Finish(0))
        self.assertEqual(self.after(""), Finish(0))

    def test_canary_fails(self) -> None:
        """A canary that fails halts the operation, whatever the budget is."""
        action = self.after("fpppp", max_failures=3)
        assert isinstance(action, Halt)
        self.assertEqual(action.reason, "the canary failed: novasvc-agent@h0")

    def test_budget(self) -> None:
        """So many failures are tolerated, and no more; nodes under way end first."""
        self.assertEqual(self.started("dfdpp", max_failures=1), [3, 4])
        self.assertEqual(self.after("dffrp", max_failures=1), Wait())
        action = self.after("dffdp", max_failures=1)
        assert isinstance(action, Halt)
        self.assertEqual(action.reason, "2 failed, and 1 may: novasvc-agent@h1, novasvc-agent@h2")

    def test_last_fails(self) -> None:
        """If no node is left, the operation is finished, with its failures."""
        self.assertEqual(self.after("ddddf"), Finish(1))
        self.assertEqual(self.after("fffff"), Finish(5))

    def test_skipped(self) -> None:
        """Nodes that the operator has set aside do not count against the budget, but are told at the end."""
        self.assertEqual(self.started("sdspp"), [3, 4])
        self.assertEqual(self.after("sdddd"), Finish(1))

    def test_resumed(self) -> None:
        """Nodes of the waves before that are pending again come first."""
        self.assertEqual(self.started("dpddpd"), [1])

    def test_large_wave(self) -> None:
        """Of a large wave, at most MAX_CONCURRENT are under way."""
        total = MAX_CONCURRENT + 20
        self.assertEqual(len(self.started("p" * total, batch=BatchSize(total), canary=0)), MAX_CONCURRENT)
        states = "d" * 5 + "r" * 95 + "p" * (total - 100)
        self.assertEqual(self.started(states, batch=BatchSize(total), canary=0), [100, 101, 102, 103, 104])
        self.assertEqual(self.after("r" * 100 + "p" * 20, batch=BatchSize(total), canary=0), Wait())

    def test_any_order(self) -> None:
        """Every run of any outcomes ends, begins each node at most once, and never exceeds a wave or the budget."""
        for outcomes in ("ddddddd", "dfddfdd", "fdddddd", "dddfffd"):
            limits = Limits(batch=BatchSize(2), canary=1, max_failures=1)
            current = nodes("p" * len(outcomes), limits)
            begun: list[int] = []
            for _ in range(20):
                action = next_action(current, limits)
                if not isinstance(action, Start):
                    break
                self.assertEqual(len({node.wave for node in action.nodes}), 1)
                begun += [node.position for node in action.nodes]
                states: dict[str, Any] = {"d": "done", "f": "failed"}
                for node in action.nodes:
                    current[node.position] = attrs.evolve(node, state=states[outcomes[node.position]])
            self.assertEqual(len(begun), len(set(begun)))
            failed = sum(outcomes[place] == "f" for place in begun)
            self.assertLessEqual(failed, limits.max_failures + limits.batch.number)
            self.assertIsInstance(action, Halt if failed > 1 or outcomes[0] == "f" else Finish)
