"""A fleet for the test cases of trial and unittest."""

from functools import cached_property
from typing import Any, ClassVar
from unittest import TestCase

from novasvc.testing.fleet import Fleet


class FleetMixin:
    """Give each test of a class a fleet, which is stopped after the test. List it before the class of test cases.

    :cvar fleet_settings: the arguments of :class:`Fleet`.
    """

    fleet_settings: ClassVar[dict[str, Any]] = {}

    @cached_property
    def fleet(self) -> Fleet:
        """The fleet of this test, made when it is first used."""
        if not isinstance(self, TestCase):
            raise TypeError(f"{type(self).__name__} is no test case; derive it from one, after FleetMixin")
        fleet = Fleet(**self.fleet_settings)
        self.addCleanup(self.__dict__.pop, "fleet")  # `trial --until-failure` runs the same object again
        self.addCleanup(fleet.stop)
        return fleet
