"""The description of the API, held against the API by schemathesis, which sends what nobody thought of."""

import json
import tempfile
from pathlib import Path
from unittest import TestCase
from urllib.request import urlopen

import pytest

from tests.e2e.process import Process, program

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


class OpenAPITests(TestCase):
    """A node with its API, and requests of every kind."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    @pytest.mark.slow
    @pytest.mark.timeout(150)
    def test_holds(self) -> None:
        """Every request is answered as the description says, none by an error of the server; and the node runs on."""
        node = Process(
            self,
            [program("twistd"), "-n", "--pidfile=", "novasvc", "--api", "--api-listen-port", "0"],
            self.folder,
            NOVASVC_STATE_DIR="state",
            NOVASVC_WSGI_LOG_FORMAT="none",
        )
        url = node.wait_for(r"page +(http://127.0.0.1:\d+/)")[1]
        amount = ["--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--seed", "1"]
        what = [f"{url}openapi.json", "--checks", CHECKS, "--exclude-path", "/events"]
        schemathesis = Process(self, [program("schemathesis"), "run", *what, *amount, "--no-color"], self.folder)
        status = schemathesis.popen.wait(120)
        self.assertEqual(schemathesis.wait(), status)
        self.assertEqual(status, 0, schemathesis.output)
        with urlopen(f"{url}healthz", timeout=10) as answer:
            self.assertEqual(json.load(answer), {"status": "ok"})
        self.assertNotIn("Traceback", node.output)
        node.stop()
