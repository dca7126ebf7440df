"""Tests with OpenStack's own client, unmodified, and a real twistd."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest, TestCase

import pytest

from tests.e2e.process import PATIENCE, ROOT, Process, program, unmeasured

pytestmark = pytest.mark.timeout(120)

PEER = Path(__file__).with_name("openstack_peer.py")
COLUMNS = ["ID", "Binary", "Host", "Zone", "Status", "State", "Updated At"]
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ADMINS, READERS = "an-admins-token-1", "a-readers-token-1"
INSERT = """
INSERT INTO services (uuid, host, binary, topic, disabled, forced_down, report_count, created_at, last_seen_up, version,
                      deleted)
VALUES (?, ?, ?, ?, 0, 0, 1, strftime('%Y-%m-%d %H:%M:%f', 'now') || '000',
        strftime('%Y-%m-%d %H:%M:%f', 'now') || '000', 1, 0)
"""


class Owner:
    """The owner of processes that live as long as a class of tests."""

    def __init__(self, case: type[TestCase]) -> None:
        self.addCleanup: Callable[..., None] = case.addClassCleanup


class Answer:
    """The result of a command."""

    def __init__(self, status: int, output: str, errors: str) -> None:
        self.status = status
        self.output = output
        self.errors = errors

    @property
    def rows(self) -> Any:
        """The output of ``-f json``."""
        assert self.status == 0, self.errors
        return json.loads(self.output)


class OpenStackCase(TestCase):
    """Tests that share a twistd with the API, and OpenStack's client."""

    tokens = ""
    folder: ClassVar[Path]
    url: ClassVar[str]
    peer: ClassVar[subprocess.Popen[str]]

    @classmethod
    def setUpClass(cls) -> None:
        if find_spec("openstackclient") is None:
            problem = "python-openstackclient is not installed: pip install 'novasvc[interop]'"
            if os.environ.get("CI"):
                raise AssertionError(problem)
            raise SkipTest(problem)
        holder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(holder.cleanup)
        cls.folder = Path(holder.name)
        options: list[str] = []
        if cls.tokens:
            file = cls.folder / "tokens"
            file.touch(0o600)
            file.write_text(cls.tokens)
            options = ["--api-token-file", str(file)]
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--host", "h1", "--api", "--api-listen-port", "0"]
        server = Process(
            Owner(cls),  # type: ignore[arg-type]  # it needs addCleanup, and no more
            [*command, *options],
            cls.folder,
            NOVASVC_STATE_DIR=str(cls.folder / "state"),
        )
        cls.url = server.wait_for(r"page +(http://[^/]+)").group(1)
        cls.peer = subprocess.Popen(
            [sys.executable, str(PEER)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**unmeasured("OS_"), "HOME": holder.name},
        )
        cls.addClassCleanup(cls.end_peer)

    @classmethod
    def end_peer(cls) -> None:
        try:
            cls.peer.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            cls.peer.kill()
            cls.peer.communicate()

    def raw(self, *arguments: str) -> Answer:
        """Run ``openstack`` with these arguments."""
        assert self.peer.stdin is not None
        assert self.peer.stdout is not None
        self.peer.stdin.write(json.dumps(arguments) + "\n")
        self.peer.stdin.flush()
        return Answer(**json.loads(self.peer.stdout.readline()))

    def openstack(self, *arguments: str, version: str = "") -> Answer:
        """Run ``openstack compute service`` without authentication."""
        options = ["--os-auth-type", "none", "--os-endpoint", f"{self.url}/v2.1"]
        if version:
            options += ["--os-compute-api-version", version]
        return self.raw(*options, "compute", "service", *arguments)

    def listed(self, *arguments: str, version: str = "") -> Any:
        """Return the rows of a list."""
        return self.openstack("list", *arguments, "-f", "json", version=version).rows

    def one(self, host: str, version: str = "") -> Any:
        """Return the one row of a host, with all its columns."""
        (row,) = self.listed("--long", "--host", host, version=version)
        return row

    def add(self, host: str, binary: str = "nova-compute", topic: str | None = "compute") -> tuple[str, str]:
        """Register a service with a recent heartbeat directly in the database; return its uuid and id."""
        name = str(uuid.uuid4())
        with closing(sqlite3.connect(self.folder / "state/novasvc.sqlite", timeout=PATIENCE)) as database, database:
            number = database.execute(INSERT, (name, host, binary, topic)).lastrowid
        return name, str(number)


class ListTests(OpenStackCase):
    """``openstack compute service list``."""

    def test_console_script(self) -> None:
        """The installed program lists a running service."""
        command = [program("openstack"), "--os-auth-type", "none", "--os-endpoint", f"{self.url}/v2.1"]
        done = subprocess.run(
            [*command, "compute", "service", "list", "-f", "json"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**unmeasured("OS_"), "HOME": str(self.folder)},
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        row = next(row for row in json.loads(done.stdout) if row["Host"] == "h1")
        self.assertEqual([*row], COLUMNS)
        self.assertEqual(
            (row["Binary"], row["Zone"], row["Status"], row["State"]), ("novasvc-agent", "internal", "enabled", "up")
        )
        self.assertRegex(row["ID"], UUID)
        self.assertRegex(row["Updated At"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}$")

    @pytest.mark.long
    def test_filters(self) -> None:
        """Host and binary match exactly, and can be combined; API servers without a topic are not listed."""
        self.add("f1")
        self.add("f1", "nova-conductor", "conductor")
        self.add("f1", "nova-osapi_compute", None)
        self.add("f2")

        def names(*arguments: str) -> list[tuple[str, str, str]]:
            return [(row["Host"], row["Binary"], row["Zone"]) for row in self.listed(*arguments)]

        both = [("f1", "nova-compute", "nova"), ("f1", "nova-conductor", "internal")]
        self.assertEqual(names("--host", "f1"), both)
        self.assertEqual(names("--host", "f1", "--service", "nova-conductor"), both[1:])
        self.assertIn(("f2", "nova-compute", "nova"), names("--service", "nova-compute"))
        self.assertEqual(names("--host", "f"), [])

    @pytest.mark.long
    def test_versions(self) -> None:
        """Each microversion has its columns and ids; the client rejects an unsupported one."""
        name, number = self.add("v1")
        for version, columns, expected in (
            ("2.1", ["Disabled Reason"], int(number)),
            ("2.11", ["Disabled Reason", "Forced Down"], int(number)),
            ("2.52", ["Disabled Reason", "Forced Down"], int(number)),
            ("2.53", ["Disabled Reason", "Forced Down"], name),
            ("2.104", ["Disabled Reason", "Forced Down"], name),
            ("2.latest", ["Disabled Reason", "Forced Down"], name),
            ("", ["Disabled Reason", "Forced Down"], name),
        ):
            row = self.one("v1", version)
            self.assertEqual(([*row], row["ID"]), ([*COLUMNS, *columns], expected), version)
        self.assertEqual(row["Updated At"], None)
        refused = self.openstack("list", version="2.105")
        self.assertEqual(refused.status, 1)
        self.assertIn("a maximum of 2.104", refused.errors)

    def test_endpoints(self) -> None:
        """The API is found from its root, and with a project in the endpoint's path, too."""
        for endpoint in (self.url, f"{self.url}/v2.1/", f"{self.url}/v2.1/abcdef"):
            command = ["--os-auth-type", "none", "--os-endpoint", endpoint, "compute", "service", "list", "-f", "json"]
            self.assertIn("h1", [row["Host"] for row in self.raw(*command).rows])


class SetTests(OpenStackCase):
    """``openstack compute service set`` and ``delete``."""

    def set(self, *arguments: str, version: str = "") -> None:
        done = self.openstack("set", *arguments, version=version)
        self.assertEqual((done.status, done.output, done.errors), (0, "", ""))

    def test_disable(self) -> None:
        """A service is disabled with a reason, without one, and enabled again, by host and binary."""
        self.add("d1")
        for arguments, expected in (
            (["--disable", "--disable-reason", "new disk"], ("disabled", "new disk", "up")),
            (["--disable"], ("disabled", None, "up")),
            (["--enable"], ("enabled", None, "up")),
        ):
            self.set(*arguments, "d1", "nova-compute")
            row = self.one("d1")
            self.assertEqual((row["Status"], row["Disabled Reason"], row["State"]), expected)
        self.assertIsNotNone(row["Updated At"])

    def test_force_down(self) -> None:
        """A service is forced down and up; both changes can be combined."""
        self.add("x1")
        for arguments, expected in (
            (["--down"], (True, "down", "enabled")),
            (["--up"], (False, "up", "enabled")),
            (["--disable", "--down"], (True, "down", "disabled")),
        ):
            self.set(*arguments, "x1", "nova-compute")
            row = self.one("x1")
            self.assertEqual((row["Forced Down"], row["State"], row["Status"]), expected)

    @pytest.mark.long
    def test_any_binary(self) -> None:
        """Other binaries than nova-compute can be disabled."""
        self.set("--disable", "h1", "novasvc-agent")
        self.assertEqual(self.one("h1")["Status"], "disabled")

    @pytest.mark.long
    def test_old_versions(self) -> None:
        """Before 2.53 services are changed by actions, and deleted by number."""
        _, number = self.add("o1")
        self.set("--disable", "o1", "nova-compute", version="2.1")
        self.assertEqual(self.one("o1")["Status"], "disabled")
        self.set("--disable", "--disable-reason", "old", "o1", "nova-compute", version="2.52")
        self.set("--down", "o1", "nova-compute", version="2.52")
        row = self.one("o1")
        self.assertEqual((row["Disabled Reason"], row["Forced Down"]), ("old", True))
        self.set("--enable", "o1", "nova-compute", version="2.11")
        self.assertEqual(self.one("o1")["Status"], "enabled")
        self.assertEqual(self.openstack("delete", number, version="2.52").status, 0)
        self.assertEqual(self.listed("--host", "o1"), [])

    @pytest.mark.long
    def test_delete(self) -> None:
        """Several services are deleted by uuid; a missing one is reported with the server's message."""
        first, _ = self.add("e1")
        second, _ = self.add("e2")
        missing = str(uuid.uuid4())
        done = self.openstack("delete", first, missing, second)
        self.assertEqual(done.status, 1)
        self.assertIn(f"404: Client Error for url: {self.url}/v2.1/os-services/{missing}", done.errors)
        self.assertIn(f"Service {missing} not found.", done.errors)
        self.assertIn("1 of 3 compute services failed to delete.", done.errors)
        self.assertEqual(self.listed("--host", "e1") + self.listed("--host", "e2"), [])
        self.assertIn("Invalid uuid 7", self.openstack("delete", "7").errors)

    def test_errors(self) -> None:
        """A failed command exits with status 1 and the reason."""
        missing = self.openstack("set", "--down", "nowhere", "nova-compute")
        self.assertEqual(missing.status, 1)
        self.assertIn('Compute service for host "nowhere" and binary "nova-compute" not found.', missing.errors)
        self.add("w1")
        long = self.openstack("set", "--disable", "--disable-reason", "x" * 256, "w1", "nova-compute")
        self.assertEqual(long.status, 1)
        self.assertIn("Failed to set service status to disabled", long.errors)
        self.assertEqual(self.one("w1")["Status"], "enabled")


class TokenTests(OpenStackCase):
    """A guarded API."""

    tokens = f"ada admin {ADMINS}\nron read {READERS}\n"

    def as_(self, token: str, *arguments: str) -> Answer:
        options = ("--os-auth-type", "admin_token", "--os-token", token, "--os-endpoint", f"{self.url}/v2.1")
        return self.raw(*options, "compute", "service", *arguments)

    def test_admin(self) -> None:
        """An administrator's token lists and sets."""
        self.add("t1")
        self.assertEqual(self.as_(ADMINS, "set", "--disable", "t1", "nova-compute").status, 0)
        (row,) = self.as_(ADMINS, "list", "--host", "t1", "-f", "json").rows
        self.assertEqual(row["Status"], "disabled")

    def test_reader(self) -> None:
        """A token with the scope read may list, but not change."""
        name, _ = self.add("t2")
        self.assertEqual(self.as_(READERS, "set", "--disable", "t2", "nova-compute").status, 1)
        refused = self.as_(READERS, "delete", name)
        self.assertEqual(refused.status, 1)
        self.assertIn("Policy doesn't allow os_compute_api:os-services:delete to be performed.", refused.errors)
        (row,) = self.as_(READERS, "list", "--host", "t2", "-f", "json").rows
        self.assertEqual(row["Status"], "enabled")

    @pytest.mark.long
    def test_strangers(self) -> None:
        """Without a valid token the client is asked to authenticate."""
        for refused in (self.as_("a-wrong-token-001", "list"), self.openstack("list")):
            self.assertEqual(refused.status, 1)
            self.assertIn("requires authentication", refused.errors)
