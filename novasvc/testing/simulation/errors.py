"""Errors of simulations."""

from novasvc.errors import ProblemError


class BrokenPromiseError(ProblemError):
    """A run did not keep what the framework promises, or what the test added. The subject is the seed."""
