"""Tests for novasvc.reactor.machine: state machines written as tables."""

from collections.abc import Callable
from typing import Protocol

from automat import NoTransition
from twisted.trial.unittest import SynchronousTestCase

from novasvc._compat import machine_state
from novasvc.reactor.machine import Transition, build_machine


class Inputs(Protocol):
    """What a door is told."""

    def open(self, who: str) -> None:
        """Open."""

    def close(self) -> None:
        """Close."""


class Door:
    """Remembers who opened it; may be closed in the moment it opens."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.at_once: Callable[[], None] = lambda: None

    def opened(self, who: str) -> None:
        self.log.append(f"{who} opens")
        self.at_once()
        self.log.append(f"{who} has opened")

    def closed(self) -> None:
        self.log.append("closed")


TABLE: tuple[Transition, ...] = (
    ("closed | ajar", Inputs.open, "open", Door.opened),
    ("open | ajar", Inputs.close, "closed", Door.closed),
    ("closed", Inputs.close, "", None),
)


class BuildMachineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.door = Door()
        self.machine = build_machine(Inputs, Door, "closed", TABLE)(self.door)

    def test_rows(self) -> None:
        """An input leads to the next state of its row, and the action gets its arguments."""
        self.machine.open("Ann")
        self.assertEqual((self.door.log, machine_state(self.machine)), (["Ann opens", "Ann has opened"], "open"))
        self.machine.close()
        self.assertEqual((self.door.log[2:], machine_state(self.machine)), (["closed"], "closed"))

    def test_stays(self) -> None:
        """A row without a next state and without an action ignores the input."""
        self.machine.close()
        self.assertEqual((self.door.log, machine_state(self.machine)), ([], "closed"))

    def test_no_row(self) -> None:
        """An input without a row is an error, and changes nothing."""
        self.machine.open("Ann")
        self.assertRaises(NoTransition, self.machine.open, "Bob")
        self.assertEqual(machine_state(self.machine), "open")

    def test_input_of_an_action(self) -> None:
        """An input that an action gives is handled after the action."""
        self.door.at_once = self.machine.close
        self.machine.open("Ann")
        self.assertEqual(self.door.log, ["Ann opens", "Ann has opened", "closed"])
        self.assertEqual(machine_state(self.machine), "closed")
