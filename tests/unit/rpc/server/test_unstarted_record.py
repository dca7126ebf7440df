"""Tests for novasvc.rpc.server.unstarted_record: what siblings know about requests that a dead process had not begun."""

import os
import subprocess
import sys
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc import rpc
from novasvc.rpc.server.unstarted_record import SLOTS, Progress, SharedRecords
from tests.e2e.process import ROOT
from tests.support.examples import examples
from tests.support.rpc_rig import RPCCase

PAGES = 4
CHILD = """
import os, signal, sys
from novasvc.rpc.server.unstarted_record import SharedRecords
record = SharedRecords({pages}, int(sys.argv[1])).join({page}, os.getpid())
{do}
print(flush=True)
signal.pause()
"""


class RecordCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.file = os.memfd_create("unstarted")
        self.addCleanup(os.close, self.file)
        os.ftruncate(self.file, SharedRecords.size(PAGES))
        self.shared = SharedRecords(PAGES, self.file)
        self.own = self.shared.join(0, os.getpid())

    def child(self, do: str, page: int = 1) -> subprocess.Popen[bytes]:
        """Run a line of Python in a process of its own, which then waits to be killed; "record" is its record."""
        command = [sys.executable, "-c", CHILD.format(pages=PAGES, page=page, do=do), str(self.file)]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, pass_fds=[self.file])
        self.addCleanup(self.kill, child)
        assert child.stdout is not None
        self.assertEqual(child.stdout.readline(), b"\n")
        return child

    def kill(self, child: "subprocess.Popen[bytes]", *, reap: bool = True) -> None:
        assert child.stdout is not None
        child.stdout.close()
        child.kill()
        if reap:
            child.wait()
        elif child.returncode is None:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


class ProgressTests(RecordCase):
    def test_unknown(self) -> None:
        """The progress of a request that no sibling has recorded is unknown."""
        self.assertIs(self.own.progress("a"), Progress.UNKNOWN)

    def test_never_began(self) -> None:
        """A request that a dead process, reaped or not, had received and not begun never began."""
        child = self.child("record.add('a')")
        self.assertIs(self.own.progress("a"), Progress.PENDING)
        self.kill(child, reap=False)
        self.assertIs(self.own.progress("a"), Progress.NEVER_BEGAN)
        self.kill(child)
        self.assertIs(self.own.progress("a"), Progress.NEVER_BEGAN)

    def test_began(self) -> None:
        """A request that the dead process had begun or requeued may have run."""
        self.kill(self.child("record.remove(record.add('a'))"))
        self.assertIs(self.own.progress("a"), Progress.UNKNOWN)

    def test_taken_over(self) -> None:
        """The record of a second process that took the request over and died decides whether it may have begun."""
        self.kill(self.child("record.add('a')"))
        child = self.child("record.add('a')", page=2)
        self.assertIs(self.own.progress("a"), Progress.PENDING)
        self.kill(child)
        self.assertIs(self.own.progress("a"), Progress.NEVER_BEGAN)
        self.kill(self.child("record.remove(record.add('a'))", page=3))
        self.assertIs(self.own.progress("a"), Progress.UNKNOWN)

    def test_own(self) -> None:
        """A request that this process has recorded is pending in a living process."""
        self.own.add("a")
        self.assertIs(self.own.progress("a"), Progress.PENDING)

    def test_pid_of_another(self) -> None:
        """A reused pid is not mistaken for the process that had the request."""
        self.shared.join(1, os.getpid()).add("a")
        pid, started = self.shared.owner(1)
        self.shared.memory[16:32] = pid.to_bytes(8, "little") + (started - 1).to_bytes(8, "little")
        self.assertIs(self.own.progress("a"), Progress.NEVER_BEGAN)

    def test_overwritten(self) -> None:
        """The oldest entries are overwritten, and the progress of their requests is unknown."""
        self.kill(self.child(f"for n in range({SLOTS + 1}): record.add(str(n))"))
        self.assertIs(self.own.progress("0"), Progress.UNKNOWN)
        self.assertIs(self.own.progress("1"), Progress.NEVER_BEGAN)

    def test_page_taken_again(self) -> None:
        """A process that gets a dead process's page starts with an empty record."""
        self.kill(self.child("record.add('a')"))
        self.child("record.add('b')")
        self.assertIs(self.own.progress("a"), Progress.UNKNOWN)

    @settings(max_examples=examples(50), suppress_health_check=[HealthCheck.differing_executors])
    @given(st.lists(st.text(st.characters(), max_size=40), unique=True, max_size=30), st.data())
    def test_any_id(self, ids: list[str], data: st.DataObject) -> None:
        """Ids of any form are distinguished, including lone surrogates."""
        dead = SharedRecords(pages=2)
        record = dead.join(0, 2**31)  # no process has this pid
        own = dead.join(1, os.getpid())
        slots = {each: record.add(each) for each in ids}
        begun = set(data.draw(st.lists(st.sampled_from(ids)))) if ids else set()
        for each in begun:
            record.remove(slots[each])
        for each in ids:
            self.assertIs(own.progress(each), Progress.UNKNOWN if each in begun else Progress.NEVER_BEGAN)


class PageTests(SynchronousTestCase):
    def test_longest_ago(self) -> None:
        """The least recently assigned page of a dead process is reused; the page of a living one never is."""
        shared = SharedRecords(pages=3)
        for pid in (11, 12, 13):
            page = shared.free_page({11, 12, 13})
            assert page is not None
            shared.join(page, pid)
        self.assertIs(shared.free_page({11, 12, 13}), None)
        self.assertEqual(shared.free_page({11, 12}), 2)
        self.assertEqual(shared.free_page({13}), 0)


class ServerTests(RPCCase):
    """A server with siblings, and a request that one of them received before."""

    concurrency = 1

    def setUp(self) -> None:
        self.shared = SharedRecords(pages=3)
        self.sibling = self.shared.join(0, 2**31)  # no process has this pid: it is dead
        self.own = self.shared.join(1, os.getpid())
        super().setUp()

    def serve(self, **given: Any) -> rpc.Server:
        return super().serve(unstarted_record=self.own, **given)

    def unique_id(self, body: bytes) -> str:
        unique_id = rpc.message.read_request(rpc.message.unwrap(body)).unique_id
        assert unique_id is not None
        return unique_id

    def results(self) -> list[Any]:
        return [reply.result if reply.failure is None else "failed" for reply in self.replies]

    def test_never_began(self) -> None:
        """The server runs a request that a dead sibling had not begun, although its method is not idempotent."""
        body = self.request("note", what=1)
        self.sibling.add(self.unique_id(body))
        self.redeliver(body)
        self.assertEqual((self.diary.calls, self.results()), ([1], [1]))

    def test_began(self) -> None:
        """The server refuses a request that the dead sibling had begun."""
        body = self.request("note", what=1)
        self.sibling.remove(self.sibling.add(self.unique_id(body)))
        self.redeliver(body)
        self.assertEqual((self.diary.calls, self.results()), ([], ["failed"]))

    def test_dying(self) -> None:
        """The server waits for a sibling that may be dying, and then runs its request."""
        body = self.request("note", what=1)
        pid = os.getpid()
        dying = self.shared.join(2, pid)
        dying.add(self.unique_id(body))
        self.redeliver(body)
        self.assertEqual((self.diary.calls, self.results()), ([], []))
        self.shared.memory[32:40] = (2**31).to_bytes(8, "little")
        self.clock.pump([0.05, 0.0])
        self.assertEqual((self.diary.calls, self.results()), ([1], [1]))

    def test_alive(self) -> None:
        """The server refuses the request of a sibling that stays alive and may run it itself."""
        body = self.request("note", what=1)
        self.shared.join(2, os.getpid()).add(self.unique_id(body))
        self.redeliver(body)
        drained = self.server.drained()
        self.clock.pump([0.05] * 39)
        self.assertNoResult(drained)
        self.clock.pump([0.05, 0.0])
        self.assertEqual((self.diary.calls, self.results()), ([], ["failed"]))
        self.successResultOf(drained)

    def test_given_back(self) -> None:
        """A server that is closed while it waits requeues the request, for another to decide."""
        body = self.request("note", what=1)
        self.shared.join(2, os.getpid()).add(self.unique_id(body))
        self.redeliver(body)
        self.successResultOf(self.server.close())
        ((delivery),) = self.take()
        self.assertEqual((delivery.body, delivery.deliveries), (body, 1))
        self.clock.advance(10)
        self.assertEqual((self.diary.calls, self.results()), ([], []))

    def test_recorded(self) -> None:
        """The server records a waiting request until the request begins or is requeued."""
        first, second, third = (self.request("hang", what=n) for n in range(3))
        for body in (first, second, third):
            self.send(body)
        found = [self.own.progress(self.unique_id(body)) for body in (first, second, third)]
        self.assertEqual(found[0], Progress.UNKNOWN)
        self.assertEqual(found[1], Progress.PENDING)
        self.diary.hanging[0].callback(None)
        self.clock.advance(0)
        self.assertEqual(self.diary.calls, [0, 1])
        self.assertIs(self.own.progress(self.unique_id(second)), Progress.UNKNOWN)
        self.successResultOf(self.server.stop_consuming())
        self.server.cut_short("b@h was shutting down")
        self.assertIs(self.own.progress(self.unique_id(third)), Progress.UNKNOWN)

    def test_taken_over(self) -> None:
        """The server records a takeover even if it begins at once, so that a third process does not run it again."""
        body = self.request("hang", what=1)
        self.sibling.add(self.unique_id(body))
        self.redeliver(body)
        self.assertEqual(self.diary.calls, [1])
        self.assertIs(self.own.progress(self.unique_id(body)), Progress.UNKNOWN)

    def test_undecided_in_drain(self) -> None:
        """A request that is undecided when the server drains is not begun there."""
        body = self.request("note", what=1)
        dying = self.shared.join(2, os.getpid())
        dying.add(self.unique_id(body))
        self.redeliver(body)
        self.server.drain()
        self.shared.memory[32:40] = (2**31).to_bytes(8, "little")
        self.clock.pump([0.05] * 50)
        self.assertEqual(self.diary.calls, [])

    def test_idempotent(self) -> None:
        """Requests for idempotent methods are not recorded: they may run again anyway."""
        hanging: list[Deferred[Any]] = self.diary.hanging
        self.send(self.request("hang", what=0))
        waiting = self.request("hang_again", what=1)
        self.send(waiting)
        self.assertIs(self.own.progress(self.unique_id(waiting)), Progress.UNKNOWN)
        hanging[0].callback(None)
