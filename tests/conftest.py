"""What every test stands on."""

import os
import signal
from pathlib import Path

import hypothesis
import pytest

from tests.support.examples import examples

# Two busy cores make any deadline a matter of luck. CI takes the same examples each time; elsewhere they vary.
hypothesis.settings.register_profile(
    "novasvc", deadline=None, derandomize="CI" in os.environ, max_examples=examples(100)
)
hypothesis.settings.load_profile("novasvc")

# A shell ignores these for `tests/run &` in a script, and for nohup. What the tests start would inherit that, but not a
# handler; and the run itself goes on as if they were ignored.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda _number, _frame: None)


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in a directory of its own, where trial's mktemp makes its files, too."""
    monkeypatch.chdir(tmp_path)
