"""How a node reaches the process that it runs in."""

from novasvc.interfaces import IProcessControl
from novasvc.reactor.local import ReactorLocal

process_control: ReactorLocal[IProcessControl | None] = ReactorLocal(lambda _: None)
"""The control of the process that runs a reactor; None in a worker, and in the process of another application."""
