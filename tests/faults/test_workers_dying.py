"""Workers that cannot run: a clear error, and a status that says so; never a fast loop."""

import re

import pytest

from tests.faults.fleet_rig import FleetCase

BUDGET = 3
SOON = {"NOVASVC_WORKER_RESTART_BUDGET": str(BUDGET)}


class DyingCase(FleetCase):
    def assert_given_up(self, output: str, reason: str) -> None:
        """See that worker 1 had its budget, not all at once, and that the last word is why."""
        again = re.findall(r"worker 1 .* restarting it (?:now|in ([\d.]+) s)", output)
        self.assertEqual((len(again), again[0]), (BUDGET - 1, ""), output)
        self.assertGreater(min(map(float, again[1:])), 0.2, output)
        self.assertRegex(output, rf"cannot run: worker 1 exited {BUDGET} times within 60 s, at last: .*{reason}")

    def assert_refused(self, output: str, reason: str) -> None:
        """See that nothing was tried again, and that the error is for who has to mend it."""
        self.assertNotIn("restarting it", output)
        self.assertNotIn("Traceback", output)
        self.assertRegex(output, rf"the supervisor did not start: the workers of novasvc-agent cannot run: .*{reason}")


class ManagerTests(DyingCase):
    """Under twistd."""

    def ends(self, manager: str, *options: str, **environment: str) -> str:
        fleet = self.twistd(*options, manager=manager, **environment)
        self.assertEqual(fleet.wait(), 1, fleet.output)
        return fleet.output

    def module_ends(self, text: str, **environment: str) -> str:
        """Run a manager from a module of this text."""
        (self.folder / "broken.py").write_text(text)
        return self.ends("broken.Manager", "--workers", "1", PYTHONPATH=str(self.folder), **environment)

    def test_import(self) -> None:
        """A manager whose module raises is an error of the configuration: it is named, and nothing is tried again."""
        output = self.module_ends("raise LookupError('no such hypervisor')")
        self.assert_refused(output, "importing broken raised LookupError: no such hypervisor.*; fix the module")

    def test_constructor(self) -> None:
        """A manager whose constructor raises is such an error, too, whatever the number of workers."""
        output = self.ends("Unmade", "--workers", "3")
        self.assert_refused(output, r"Unmade': its constructor raised LookupError: no such hypervisor .*; fix it")

    @pytest.mark.long
    def test_end_at_import(self) -> None:
        """A module that ends the process that imports it is named, and not imported for ever."""
        output = self.module_ends("import os; os._exit(0)", **SOON)
        self.assert_given_up(output, r"the forkserver \(pid \d+\) died while importing broken")

    def test_init_host(self) -> None:
        """A manager that raises in init_host is tried a few times: the next time its host may be well."""
        output = self.ends("FailsToInit", "--workers", "1", **SOON)
        self.assert_given_up(output, "init_host failed: LookupError: no such hypervisor")

    @pytest.mark.long
    def test_pre_start_hook(self) -> None:
        """A manager that raises in pre_start_hook is tried a few times."""
        output = self.ends("FailsBeforeStart", "--workers", "1", **SOON)
        self.assert_given_up(output, "pre_start_hook failed: LookupError: no such hypervisor")

    @pytest.mark.long
    def test_post_start_hook(self) -> None:
        """A manager that raises in post_start_hook is tried a few times."""
        output = self.ends("FailsAfterStart", "--workers", "1", **SOON)
        self.assert_given_up(output, "post_start_hook failed: LookupError: no such hypervisor")

    def test_hangs(self) -> None:
        """A manager that stops its reactor in init_host is aborted, says where it was, and is tried a few times."""
        output = self.ends("Hangs", "--workers", "1", "--worker-watchdog", "1", **SOON)
        self.assert_given_up(output, r"its reactor was blocked for \d s")
        self.assertRegex(output, r"was killed by SIGABRT; stacks:(?s:.)*fleet_parts.py\S+ line \d+ in init_host")


class ServerTests(DyingCase):
    """In a script."""

    @pytest.mark.long
    def test_exit(self) -> None:
        """A worker that exits at once, were it with status 0, is tried a few times; the supervisor's status is 1."""
        fleet = self.script("dying:exit 0=1", **SOON)
        self.assertEqual(fleet.wait(), 1, fleet.output)
        self.assert_given_up(fleet.output, "it exited with status 0")

    def test_beside_others(self) -> None:
        """A server that cannot run ends the others, which drain: a deployment starts as a whole, or not."""
        fleet = self.script("dying:kill 9=1", "obedient:one=1", **SOON)
        self.assertEqual(fleet.wait(), 1, fleet.output)
        self.assert_given_up(fleet.output, "it was killed by SIGKILL")
        self.assertRegex(fleet.output, r"worker 2 \(pid \d+\) of one drained: it exited with status 0")

    def test_once_it_has_run(self) -> None:
        """With worker_crash_loop = exit, workers that keep dying end the supervisor even if they have run."""
        fleet = self.script("obedient:one=1", NOVASVC_WORKER_CRASH_LOOP="exit", **SOON)
        fleet.wait_for("the supervisor is running")
        for _ in range(BUDGET):
            fleet.kill(1)
        self.assertEqual(fleet.wait(), 1, fleet.output)
        self.assert_given_up(fleet.output, "it was killed by SIGKILL")
