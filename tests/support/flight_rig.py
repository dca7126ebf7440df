"""A flight recorder in place of the process's own, for the tests of what is noted in it."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.telemetry import flight
from novasvc.telemetry.flight import FlightRecorder


def record_flight(case: SynchronousTestCase) -> FlightRecorder:
    """Install a new recorder until the end of a test, and return it."""
    case.addCleanup(flight.install, flight.installed())
    recorder = FlightRecorder.anonymous()
    case.addCleanup(recorder.close)
    flight.install(recorder)
    return recorder


def said(recorder: FlightRecorder, kind: str) -> list[str]:
    """Return the texts of one kind that were noted."""
    return [event.text for event in recorder.events() if event.kind == kind]
