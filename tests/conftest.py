"""What every test stands on."""

import os
from pathlib import Path

import hypothesis
import pytest

# Two busy cores make any deadline a matter of luck. CI takes the same examples each time; elsewhere they vary.
hypothesis.settings.register_profile("novasvc", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("novasvc")


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in a directory of its own, where trial's mktemp makes its files, too."""
    monkeypatch.chdir(tmp_path)
