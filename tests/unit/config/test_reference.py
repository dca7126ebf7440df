"""Tests for docs/settings.md and the definitions that it is generated from."""

from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase

from novasvc.config import Settings
from novasvc.config.model import DEFINITIONS
from novasvc.config.reference import reference

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


class ReferenceTests(SynchronousTestCase):
    """Tests for docs/settings.md."""

    def test_current(self) -> None:
        """The page is what `python -m novasvc.config.reference` writes."""
        self.assertEqual(PAGE.read_text(encoding="utf-8"), reference())

    def test_complete(self) -> None:
        """Every field but those for tables, managers and APIs is a setting with a help text."""
        fields = {field.name for field in attrs.fields(Settings)}
        self.assertEqual(fields - DEFINITIONS.keys(), {"apis", "managers", "services"})
        for name, definition in DEFINITIONS.items():
            self.assertTrue(definition.help.endswith("."), name)
