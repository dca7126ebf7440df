"""Middleware: code of one's own around calls, methods, events, tasks and HTTP requests.

:class:`novasvc.interfaces.IMiddleware` is the interface. The setting ``rpc_middleware`` names classes in order.
"""

from novasvc.middleware.chain import Answer, Chain
from novasvc.middleware.errors import MiddlewareError
from novasvc.middleware.invocation import KINDS, RECEIVING, SENDING, Invocation
from novasvc.middleware.loading import load_middleware

__all__ = ["KINDS", "RECEIVING", "SENDING", "Answer", "Chain", "Invocation", "MiddlewareError", "load_middleware"]
