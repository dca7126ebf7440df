"""The code of docs/guides/simulate-a-fleet.md, run as its reader would."""

import re
import subprocess
import sys
from pathlib import Path
from unittest import TestCase

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "simulate-a-fleet.md"
NAMED = re.compile(r"```python\n# (\S+\.py)\n(.*?)```", re.DOTALL)


class GuideTests(TestCase):
    """Tests for docs/guides/simulate-a-fleet.md."""

    @pytest.mark.timeout(150)
    def test_run(self) -> None:
        """The tests of the guide pass in an empty folder: the bug is found, and what is correct passes."""
        files = NAMED.findall(GUIDE.read_text(encoding="utf-8"))
        self.assertEqual([name for name, _ in files], ["stock.py", "test_stock.py"])
        for name, text in files:
            Path(name).write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-W", "error"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        self.assertRegex(done.stdout, r"(?m)^2 passed in ", done.stdout + done.stderr)
