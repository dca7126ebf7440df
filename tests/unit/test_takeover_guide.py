"""The manager and the test of docs/guides/take-over-work.md."""

import re
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from novasvc.testing import Fleet

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "take-over-work.md"
NAMED = re.compile(r"```python\n# (\w+)\.py\n(.*?)```", re.DOTALL)


class TakeOverGuideTests(SynchronousTestCase):
    """The guide's code runs as it is printed."""

    def test_evacuation(self) -> None:
        """The instances of a host that is cut off are taken over, and what it writes when it comes back is refused."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        files = dict(NAMED.findall(GUIDE.read_text(encoding="utf-8")))
        self.assertEqual(set(files), {"instances", "test_instances"})
        for name, code in files.items():
            (folder / f"{name}.py").write_text(code, encoding="utf-8")
            self.addCleanup(sys.modules.pop, name, None)
        self.patch(sys, "path", [str(folder), *sys.path])
        from test_instances import test_evacuation  # type: ignore[import-not-found]  # noqa: PLC0415

        with Fleet() as fleet:
            test_evacuation(fleet)
