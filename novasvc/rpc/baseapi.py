"""What every node answers, beside its manager's own methods."""

from typing import Any

import attrs

from novasvc.context import RequestContext
from novasvc.rpc.exposure import expose
from novasvc.rpc.message import WayBack, encode_request


def write_ping(msg_id: str, address: str) -> bytes:
    """Write a call of ``ping`` whose reply goes to an address; see :data:`novasvc.interfaces.WriteProbe`."""
    back = WayBack(msg_id, address)
    return encode_request("ping", {"arg": "reachability"}, {}, namespace="baseapi", version="1.0", back=back)


@attrs.frozen(eq=False)
class BaseAPI:
    """Answers in namespace "baseapi", version 1.1, as Nova's services do.

    :param service_name: what the node calls itself: its topic.
    :param backdoor_port: of the node's backdoor; None if it has none.
    Source: nova.baserpc.BaseRPCAPI.
    """

    service_name: str
    backdoor_port: int | None = None

    @expose(namespace="baseapi", version="1.0", idempotent=True)
    def ping(self, context: RequestContext, arg: Any) -> dict[str, Any]:
        """Answer with the service's name and what was sent."""
        return {"service": self.service_name, "arg": arg}

    @expose(namespace="baseapi", version="1.1", idempotent=True)
    def get_backdoor_port(self, context: RequestContext) -> int | None:
        """Answer with the port of the backdoor, or None."""
        return self.backdoor_port
