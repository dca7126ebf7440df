"""Errors of listening sockets."""

from novasvc.errors import ProblemError


class ListenError(ProblemError):
    """A server cannot bind to its address or listen on it.

    The subject is "127.0.0.1:8000", "unix socket /run/x", or an endpoint description.
    """

    about = "cannot listen on {}"
