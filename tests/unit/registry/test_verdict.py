"""Verdicts on a simulated fleet: what a reader says of it, second by second."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

import attrs
from twisted.trial.unittest import SynchronousTestCase

from novasvc.registry.incarnation import Incarnation, ServiceState
from novasvc.registry.outage_search import find_outages
from novasvc.registry.outages import Silence, VerdictRule, members_of
from novasvc.registry.record import ServiceRecord
from novasvc.registry.verdict import Judge, Verdict, describe_outages, judge, needs_outages

NOON = datetime(2026, 11, 29, 12)  # noqa: DTZ001 - the table's form
RULE = VerdictRule()
INTERVAL = 10.0


@attrs.define
class Node:
    """A service that sends a heartbeat every ten seconds, while it can."""

    id: int
    binary: str
    phase: float
    zone: str | None = None
    seen: float = 0.0
    started: float = -3600.0
    cut: Callable[[float], bool] = lambda _: False
    recorded: bool = True
    forced: bool = False
    state: ServiceState = "ready"
    reason: str | None = None
    since: float = -3600.0
    until: float | None = None


class Fleet:
    """Nodes, and a registry whose clock runs in steps of a second."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.silences: list[Silence] = []
        self.now = 0.0
        self.stalls: list[tuple[float, float]] = []

    def add(self, binary: str, count: int, zone: str | None = None) -> list[Node]:
        """Add nodes, whose heartbeats are spread over the interval."""
        nodes = [
            Node(len(self.nodes) + number, binary, phase=number * INTERVAL / count % INTERVAL, zone=zone)
            for number in range(count)
        ]
        for node in nodes:
            node.seen = self.now - INTERVAL + node.phase
        self.nodes += nodes
        return nodes

    def run(self, until: float) -> "Fleet":
        """Advance the clock; a heartbeat that a stall holds up is tried again at the next interval."""
        while self.now < until:
            self.now += 1
            if any(begin <= self.now < end for begin, end in self.stalls):
                continue
            for node in self.nodes:
                due = (self.now - node.phase) // INTERVAL * INTERVAL + node.phase
                if due < self.now - 1 or node.state in {"stopped", "failed"} or node.cut(due):
                    continue
                if due - node.seen > RULE.late and node.recorded:
                    self.silences.append(Silence(service_id=node.id, began=_time(node.seen), ended=_time(due)))
                node.seen = due
        return self

    def records(self) -> list[ServiceRecord]:
        """Return the rows as they are read now."""
        return [self._record(node) for node in self.nodes]

    def verdicts(self) -> dict[int, Verdict]:
        """Judge all services."""
        records = self.records()
        return {
            record.id: verdict for record, verdict in zip(records, judge(records, RULE, self.silences), strict=True)
        }

    def count(self) -> Counter[str]:
        """Return the number of verdicts of each status."""
        return Counter(verdict.status for verdict in self.verdicts().values())

    def problems(self) -> list[str]:
        """Return the sentences on outages."""
        outages = find_outages([*members_of(self.records())], self.silences, _time(self.now), RULE)
        return list(describe_outages(outages).values())

    def _record(self, node: Node) -> ServiceRecord:
        incarnation = Incarnation(
            number=1,
            state=node.state,
            since=_time(node.since),
            until=None if node.until is None else _time(node.until),
            reason=node.reason,
            calls=0,
            machine="m",
            pid=1,
            started_at=_time(node.started),
            zone=node.zone,
            tags=(),
        )
        return ServiceRecord(
            id=node.id,
            uuid=str(node.id),
            host=f"h{node.id}",
            binary=node.binary,
            topic=node.binary,
            disabled=False,
            disabled_reason=None,
            forced_down=node.forced,
            report_count=1,
            created_at=_time(node.started),
            updated_at=_time(node.seen),
            last_seen_up=_time(node.seen),
            version=0,
            age=self.now - node.seen,
            incarnation=incarnation if node.recorded else None,
        )


def _time(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def _dead(node: Node, at: float = 0.0, until: float = float("inf")) -> None:
    node.cut = lambda now: at <= now < until


class FewTests(SynchronousTestCase):
    """A few services that fall silent are down in time, whatever happens to others later."""

    def test_three_killed(self) -> None:
        """Three of a hundred are down service_down_time after their last heartbeats, and no second later."""
        fleet = Fleet()
        for node in fleet.add("compute", 100)[:3]:
            _dead(node, 5)
        self.assertEqual(fleet.run(50).count(), {"alive": 100})
        self.assertEqual(fleet.run(61).count(), {"alive": 97, "down": 3})
        self.assertEqual(fleet.verdicts()[0].reason, "no heartbeat since 2026-11-29 12:00:00 UTC")
        self.assertEqual(fleet.verdicts()[0].since, NOON)

    def test_small_group(self) -> None:
        """A whole group of fewer than five is down at once, and a third of a larger one."""
        for killed, of in ((3, 3), (4, 4), (2, 6)):
            fleet = Fleet()
            for node in fleet.add("scheduler", of)[:killed]:
                _dead(node)
            fleet.add("compute", 5)
            self.assertEqual(fleet.run(63).count(), {"alive": 5 + of - killed, "down": killed})

    def test_one_after_the_other(self) -> None:
        """A slow trickle of failures is no outage: each service is down in time."""
        fleet = Fleet()
        for number, node in enumerate(fleet.add("compute", 40)):
            _dead(node, 10.0 * number)
        other = fleet.add("scheduler", 1)[0]
        for second in range(0, 480, 5):
            fleet.run(second)
            verdicts = fleet.verdicts()
            self.assertEqual(verdicts[other.id].status, "alive")
            for node in fleet.nodes[:30]:
                self.assertEqual(verdicts[node.id].is_down, (fleet.now - node.seen > RULE.service_down_time), node)

    def test_one_service_alone(self) -> None:
        """The only service of a fleet is down in time."""
        fleet = Fleet()
        _dead(fleet.add("compute", 1)[0])
        self.assertEqual(fleet.run(50).count(), {"alive": 1})
        self.assertEqual(fleet.run(61).count(), {"down": 1})

    def test_all_of_a_small_fleet(self) -> None:
        """The database is not blamed for long when all four services of a fleet are silent."""
        fleet = Fleet()
        for node in fleet.add("compute", 4):
            _dead(node)
        self.assertEqual(fleet.run(75).count(), {"suspect": 4})
        self.assertEqual(fleet.run(100).count(), {"down": 4})


class ManyTests(SynchronousTestCase):
    """Many services that fall silent at the same time are suspect, until they return or suspect_time has passed."""

    def test_cut_off(self) -> None:
        """40 % of the services are suspect for suspect_time, then down; the others are not concerned."""
        fleet = Fleet()
        for node in fleet.add("compute", 1000)[::5] + fleet.nodes[1::5]:
            _dead(node, 100)
        self.assertEqual(fleet.run(158).count()["down"], 0)
        self.assertEqual(fleet.run(162).count(), {"alive": 600, "suspect": 400})
        problem = (
            "400 of 1000 services of compute became silent at the same time, 2026-11-29 12:01:39 UTC: "
            "the database, the broker, a conductor or a network"
        )
        self.assertEqual(fleet.problems(), [problem])
        self.assertIn("as from 400 of 1000 services of compute", fleet.verdicts()[0].reason)
        self.assertEqual(fleet.run(440).count(), {"alive": 600, "suspect": 400})
        self.assertEqual(fleet.run(465).count(), {"alive": 600, "down": 400})
        self.assertEqual(fleet.problems(), [])

    def test_cut_off_comes_back(self) -> None:
        """The last services that return are no large share any more, and yet not down; those that died are, in time."""
        fleet = Fleet()
        cut = fleet.add("compute", 100)[:40]
        for node in cut:
            _dead(node, 100, 200)
        _dead(cut[0], 100)
        _dead(cut[1], 100)
        for second in (*range(155, 215), 300, 440):
            self.assertEqual(fleet.run(second).count()["down"], 0, second)
        self.assertEqual(fleet.count(), {"alive": 98, "suspect": 2})
        self.assertEqual(fleet.run(465).count(), {"alive": 98, "down": 2})

    def test_zone(self) -> None:
        """A zone whose network is cut is suspect, even if it is a small part of the fleet."""
        fleet = Fleet()
        fleet.add("compute", 90, zone="a")
        for node in fleet.add("compute", 10, zone="b"):
            _dead(node, 30)
        self.assertEqual(fleet.run(95).count(), {"alive": 90, "suspect": 10})
        self.assertIn("10 of 10 services of compute in zone b", fleet.problems()[0])

    def test_long_dead_do_not_count(self) -> None:
        """Eighty services that died long ago do not make the other twenty a small share."""
        fleet = Fleet()
        for node in fleet.add("compute", 100):
            _dead(node, 0 if node.id < 80 else 1000)
        fleet.add("scheduler", 1)
        self.assertEqual(fleet.run(900).count(), {"alive": 21, "down": 80})
        self.assertEqual(fleet.run(1065).count(), {"alive": 1, "down": 80, "suspect": 20})

    def test_operator_confirms(self) -> None:
        """A suspect service that an operator forces down is down, and the others stay suspect."""
        fleet = Fleet()
        for node in fleet.add("compute", 10):
            _dead(node)
        fleet.add("scheduler", 1)
        fleet.run(90).nodes[0].forced = True
        self.assertEqual(fleet.verdicts()[0].reason, "forced down by an operator")
        self.assertEqual(fleet.count(), {"alive": 1, "down": 1, "suspect": 9})

    def test_only_an_operator_confirms(self) -> None:
        """With a suspect_time of 0 they stay suspect."""
        fleet = Fleet()
        for node in fleet.add("compute", 10):
            _dead(node)
        fleet.add("scheduler", 1)
        fleet.run(4000)
        rule = attrs.evolve(RULE, suspect_time=0)
        self.assertEqual(
            Counter(verdict.status for verdict in judge(fleet.records(), rule)), {"alive": 1, "suspect": 10}
        )


class StallTests(SynchronousTestCase):
    """A stall of the database or of the conductors never makes a service down."""

    def test_database(self) -> None:
        """While the heartbeats come back after a stall, no service is down at any second; a dead one is, in time."""
        for length, size in ((30, 50), (60, 300), (60, 5), (90, 50), (600, 50), (7200, 50)):
            self._check_stall(length, size)

    def _check_stall(self, length: int, size: int) -> None:
        fleet = Fleet()
        fleet.add("compute", size)
        fleet.add("scheduler", 2)
        _dead(fleet.nodes[2], 95)
        fleet.stalls = [(100, 100 + length)]
        fleet.run(99 + length)
        for second in range(100 + length, 130 + length):
            verdicts = fleet.run(second).verdicts()
            verdicts.pop(2)
            self.assertFalse([verdict for verdict in verdicts.values() if verdict.is_down], second)
        self.assertEqual(fleet.count()["alive"], size + 1)
        self.assertEqual(fleet.run(100 + length + 60).count(), {"alive": size + 1, "down": 1})

    def test_other_sign(self) -> None:
        """A change of state or a new start just after a stall is no proof that heartbeats arrived during it."""
        for change in ({"state": "stopped"}, {"state": "draining"}, {"started": 161.0}, {"started": 99.0}):
            fleet = Fleet()
            first, *_ = fleet.add("compute", 5)
            fleet.stalls = [(100, 161)]
            _dead(first, 100)
            fleet.run(160)
            for name, value in {"since": 161.0, **change}.items():
                setattr(first, name, value)
            for second in range(161, 180):
                self.assertEqual(fleet.run(second).count()["down"], "stopped" in change.values(), (change, second))

    def test_unrecorded(self) -> None:
        """Services of Nova's own, of which nobody records silences, are protected as a group while most are silent."""
        fleet = Fleet()
        for node in fleet.add("nova-compute", 30):
            node.recorded = False
        fleet.stalls = [(100, 165)]
        for second in range(160, 168):
            self.assertEqual(fleet.run(second).count()["down"], 0, second)

    def test_small_fleet(self) -> None:
        """Three services, too, survive a stall of a minute."""
        fleet = Fleet()
        fleet.add("compute", 3)
        fleet.stalls = [(100, 160)]
        for second in range(160, 190):
            self.assertEqual(fleet.run(second).count()["down"], 0, second)

    def test_said(self) -> None:
        """A stall is said while a service would be down but for it, also after its end."""
        fleet = Fleet()
        for node in fleet.add("compute", 20)[:2]:
            _dead(node, 95)
        fleet.stalls = [(100, 200)]
        self.assertEqual(fleet.run(145).problems(), [])
        (problem,) = fleet.run(180).problems()
        self.assertRegex(
            problem,
            r"\Ano heartbeat of compute has arrived since 2026-11-29 12:01:39 UTC: the database, the broker, a cond",
        )
        (problem,) = fleet.run(215).problems()
        self.assertRegex(
            problem, r"\Ano heartbeat of compute arrived from 2026-11-29 12:01:39 UTC to 2026-11-29 12:03:"
        )
        self.assertEqual(fleet.count(), {"alive": 18, "suspect": 2})
        self.assertEqual(fleet.run(260).problems(), [])
        self.assertEqual(fleet.count(), {"alive": 18, "down": 2})

    def test_earlier_stall_is_not_said(self) -> None:
        """A stall after which all services were heard again is not said during a later one."""
        fleet = Fleet()
        fleet.add("compute", 20)
        fleet.stalls = [(100, 200), (1000, 1300)]
        (problem,) = fleet.run(1100).problems()
        self.assertRegex(problem, r"\Ano heartbeat of compute has arrived since 2026-11-29 12:16:39 UTC")
        self.assertEqual(fleet.count(), {"suspect": 20})

    def test_stalls_in_a_row_are_said(self) -> None:
        """All stalls during which a suspect service was silent are said, and count for its verdict."""
        fleet = Fleet()
        _dead(fleet.add("compute", 20)[0], 95)
        fleet.stalls = [(100, 200), (220, 300)]
        first, second = fleet.run(290).problems()
        self.assertIn("arrived from 2026-11-29 12:01:39 UTC to 2026-11-29 12:03:", first)
        self.assertIn("has arrived since 2026-11-29 12:03:39 UTC", second)
        self.assertEqual(fleet.verdicts()[0].status, "suspect")

    def test_first_of_a_fleet(self) -> None:
        """The only service of a fleet that died is down, also when others join later."""
        fleet = Fleet()
        _dead(fleet.add("compute", 1)[0])
        fleet.run(100)
        for node in fleet.add("compute", 3):
            node.started = 95
        self.assertEqual(fleet.run(120).count(), {"alive": 3, "down": 1})

    def test_conductor(self) -> None:
        """Without any conductor, others that need one are suspect for any time, and come back; the database works."""
        fleet = Fleet()
        fleet.add("compute", 10)
        conductor = fleet.add("conductor", 1)[0]
        direct = fleet.add("scheduler", 5)
        for node in fleet.nodes:
            if node not in direct:
                _dead(node, 100, 1500)
        _dead(direct[0], 100)
        for second in range(100, 1540, 5):
            verdicts = fleet.run(second).verdicts()
            self.assertFalse(any(verdicts[node.id].is_down for node in fleet.nodes[:10]), second)
            self.assertEqual(verdicts[direct[0].id].is_down, second > 150, second)
            if verdicts[0].status == "suspect":
                self.assertIn("as from others: the database, the broker, a conductor or a network", verdicts[0].reason)
        self.assertEqual(fleet.count(), {"alive": 15, "down": 1})
        self.assertEqual(fleet.verdicts()[conductor.id].status, "alive")

    def test_one_of_two_conductors(self) -> None:
        """One conductor that dies is down in time: others prove that the database works."""
        fleet = Fleet()
        fleet.add("compute", 50)
        _dead(fleet.add("conductor", 2)[0], 10)
        self.assertEqual(fleet.run(75).count(), {"alive": 51, "down": 1})

    def test_all_restarted(self) -> None:
        """A restart of the whole fleet that takes half an hour is no reason to call a service down."""
        fleet = Fleet()
        for node in fleet.add("compute", 20):
            _dead(node, 100, 1700 + node.id)
        for second in range(100, 1760, 10):
            self.assertEqual(fleet.run(second).count()["down"], 0, second)
        self.assertEqual(fleet.count(), {"alive": 20})

    def test_verdict_does_not_return_from_down(self) -> None:
        """A service that was down before a stall stays down during it and after it."""
        fleet = Fleet()
        fleet.add("compute", 30)
        _dead(fleet.nodes[0], 5)
        fleet.stalls = [(70, 200)]
        fleet.run(65)
        for second in range(65, 300, 5):
            self.assertEqual(fleet.run(second).verdicts()[0].status, "down", second)


class ClockTests(SynchronousTestCase):
    """A step of the database's clock does not make a service down."""

    def test_forward(self) -> None:
        """A step of an hour ahead looks like a stall of an hour."""
        fleet = Fleet()
        fleet.add("compute", 20)
        fleet.run(100)
        fleet.now += 3600
        for second in range(3700, 3730):
            self.assertEqual(fleet.run(second).count()["down"], 0)

    def test_back(self) -> None:
        """A step back makes those suspect whose heartbeats are in the future, until their next one."""
        fleet = Fleet()
        _dead(fleet.add("compute", 20)[0], 95)
        fleet.run(100)
        for node in fleet.nodes:
            node.seen += 3600
        self.assertEqual(fleet.count(), {"suspect": 20})
        self.assertIn("the database's clock was set back", fleet.verdicts()[0].reason)

    def test_restored_backup(self) -> None:
        """Rows of yesterday, restored while the services run, are suspect until the next heartbeats."""
        fleet = Fleet()
        for node in fleet.add("compute", 20):
            node.seen -= 86400
        self.assertEqual(fleet.count(), {"suspect": 20})
        for second in range(1, 20):
            self.assertEqual(fleet.run(second).count()["down"], 0)


class StateTests(SynchronousTestCase):
    """What a service says of itself goes before its age."""

    def test_states(self) -> None:
        """Stopped and failed services are down at once, with the reason; one that nobody reaches is suspect."""
        fleet = Fleet()
        stopped, failed, unreached, forced, ready = fleet.add("compute", 5)
        stopped.state, stopped.since = "stopped", 3
        failed.state, failed.reason, failed.since = "failed", "no disk", 4
        unreached.reason = "its queue has no binding"
        _dead(unreached)
        forced.forced = True
        self.assertEqual(fleet.run(5).verdicts()[unreached.id].status, "alive")
        verdicts = fleet.run(15).verdicts()
        self.assertEqual(verdicts[stopped.id], Verdict("down", "stopped cleanly at 2026-11-29 12:00:03 UTC", _time(3)))
        self.assertEqual(verdicts[failed.id], Verdict("down", "failed: no disk", _time(4)))
        self.assertEqual(verdicts[unreached.id].status, "suspect")
        self.assertEqual(verdicts[unreached.id].reason, "it runs, but sends no heartbeats: its queue has no binding")
        self.assertEqual(verdicts[forced.id].reason, "forced down by an operator")
        self.assertEqual(verdicts[ready.id], Verdict("alive", "", _time(-3600)))

    def test_unreached_becomes_down(self) -> None:
        """A service that messages do not reach is down with the reason, when it has sent no heartbeat for long."""
        fleet = Fleet()
        node = fleet.add("compute", 9)[0]
        node.reason = "its queue has no binding"
        _dead(node)
        verdict = fleet.run(65).verdicts()[node.id]
        self.assertEqual(verdict.status, "down")
        self.assertEqual(verdict.reason, "no heartbeat since 2026-11-29 11:59:50 UTC: its queue has no binding")

    def test_start_is_a_sign_of_life(self) -> None:
        """A service that has just begun to start is alive, whenever its last heartbeat was."""
        fleet = Fleet()
        node = fleet.add("compute", 9)[0]
        _dead(node)
        fleet.run(500)
        node.state, node.since = "starting", 500
        self.assertEqual(fleet.verdicts()[node.id].status, "alive")
        verdict = fleet.run(565).verdicts()[node.id]
        self.assertEqual(verdict, Verdict("down", "starting since 2026-11-29 12:08:20 UTC", _time(500)))

    def test_start_that_goes_on(self) -> None:
        """A service that tells that it still starts is alive, however long that takes; if it is silent, it is down."""
        fleet = Fleet()
        node = fleet.add("compute", 9)[0]
        _dead(node)
        node.state, node.since = "starting", 20
        for second in range(40, 600, 20):
            fleet.run(second)
            node.until = second
            self.assertEqual(fleet.count(), {"alive": 9}, second)
            self.assertFalse(needs_outages(fleet.records()[node.id], RULE))
        self.assertEqual(fleet.run(640).count(), {"alive": 9})
        reason = "starting since 2026-11-29 12:00:20 UTC, and silent since 2026-11-29 12:09:40 UTC"
        self.assertEqual(fleet.run(641).verdicts()[node.id], Verdict("down", reason, _time(580)))

    def test_starts_that_are_cut_off(self) -> None:
        """Services that start for long and are cut off together are suspect."""
        fleet = Fleet()
        for node in fleet.add("compute", 10)[:6]:
            _dead(node)
            node.state, node.since, node.until = "starting", 0, 500
        self.assertEqual(fleet.run(590).count(), {"alive": 4, "suspect": 6})

    def test_conductor_that_starts(self) -> None:
        """While the only conductor starts, it takes no heartbeats: a small group behind it is not down."""
        fleet = Fleet()
        (conductor,) = fleet.add("conductor", 1)
        for node in [conductor, *fleet.add("compute", 3)]:
            _dead(node, 100)
        conductor.state, conductor.since = "starting", 101
        for second in range(120, 400, 20):
            fleet.run(second)
            conductor.until = second
            verdicts = fleet.verdicts()
            self.assertEqual(verdicts.pop(conductor.id).status, "alive")
            self.assertNotIn("down", {verdict.status for verdict in verdicts.values()}, second)

    def test_needs_outages(self) -> None:
        """Only for a service that is silent the others matter."""
        fleet = Fleet()
        _, silent, stopped = fleet.add("compute", 3)
        _dead(silent)
        stopped.state = "stopped"
        records = fleet.run(70).records()
        self.assertEqual([needs_outages(record, RULE) for record in records], [False, True, False])

    def test_nothing_to_judge(self) -> None:
        """No rows have no verdicts."""
        self.assertEqual(judge([], RULE), [])

    def test_one_row_with_outages(self) -> None:
        """A row that is judged with the outages of the fleet has the verdict that it has among all."""
        fleet = Fleet()
        for node in fleet.add("compute", 20)[:10]:
            _dead(node)
        records = fleet.run(75).records()
        one = Judge(RULE, find_outages([*members_of(records)], fleet.silences, _time(fleet.now), RULE))
        self.assertEqual([one(record) for record in records], judge(records, RULE, fleet.silences))
