"""The specification of a service that may use the runtime of its process."""

from typing import Any

import attrs

from novasvc.node.runtime import Runtime, set_process_runtime
from novasvc.workers.specification import ServiceSpecification


@attrs.frozen
class NodeSpecification(ServiceSpecification):
    """A service as the arguments of its constructor, and what it takes from its process.

    :param environment: the runtime of the process, for a service that is given none; None for any other.
    """

    environment: Runtime | None = None

    def build(self, reactor: Any) -> Any:
        """Make the service, with its manager."""
        if self.environment is not None:
            set_process_runtime(self.environment)
        return super().build(reactor)
