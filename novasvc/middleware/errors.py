"""Errors of middleware."""

from novasvc.errors import ProblemError


class MiddlewareError(ProblemError):
    """A middleware cannot be loaded, or does not do what :class:`novasvc.interfaces.IMiddleware` asks of it.

    The subject is its dotted name.
    """

    about = "middleware {!r}"
