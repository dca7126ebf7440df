"""The names of nova.service, on Twisted."""

from novasvc.service.service import Service
from novasvc.service.tree import ServiceTree

__all__ = ["Service", "ServiceTree"]
