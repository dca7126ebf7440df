"""The code of docs/guides/liveness.md, run as its reader would."""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from novasvc.testing import Fleet

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "liveness.md"
_NAMED = re.compile(r"```python\n# (\w+)\.py\n(.*?)```", re.DOTALL)


class LivenessGuideTests(SynchronousTestCase):
    """The observer of the guide, and its tests."""

    def setUp(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        self.names = []
        for name, code in _NAMED.findall(GUIDE.read_text()):
            (folder / f"{name}.py").write_text(code)
            self.names.append(name)
        self.patch(sys, "path", [str(folder), *sys.path])
        self.addCleanup(lambda: [sys.modules.pop(name, None) for name in self.names])

    def test_run(self) -> None:
        """Its tests pass, each with a fleet."""
        self.assertEqual(self.names, ["evacuation", "test_evacuation"])
        module: Any = import_module("test_evacuation")
        tests = [value for name, value in vars(module).items() if name.startswith("test_")]
        self.assertEqual(len(tests), 2)
        for test in tests:
            with Fleet() as fleet:
                test(fleet)
