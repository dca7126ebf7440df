"""Errors of the helpers for tests."""

from novasvc.errors import ProblemError


class NotSettledError(ProblemError):
    """The time of a fleet was advanced to its limit, or nothing is due any more, and something still waits.

    The problem names what waits; the subject is the wait that was given up.
    """


class BusyClockError(ProblemError):
    """The calls that are due at one moment do not end: each schedules another for the same moment.

    The subject is the function that was called last.
    """

    about = "the clock does not get past {}"


class UnusedFaultError(ProblemError):
    """A fault was injected that no message met. The subject is the fault."""


class UnseenFailureError(ProblemError):
    """A handler of an event or a periodic task has failed, and the test has not looked. The subject is its name."""


class UnknownNodeError(ProblemError):
    """No node of the fleet has this name. The subject is the name."""

    about = "node {!r}"


class BrokenPromiseError(ProblemError):
    """A simulation did not keep what novasvc promises, or what the test added. The subject is the seed."""


class ServerSetupError(ProblemError):
    """A server for tests refused to make or to delete something. The subject is its URL, without a password."""
