"""The base API: methods that every node serves, beside its manager's own."""

from typing import Any

import attrs

from novasvc.context import RequestContext
from novasvc.rpc.exposure import expose
from novasvc.rpc.message import ReplyTo, encode_request


def write_ping(msg_id: str, address: str) -> bytes:
    """Encode a call of ``ping`` with this reply address; see :data:`novasvc.interfaces.WriteProbe`."""
    reply_to = ReplyTo(msg_id, address)
    return encode_request("ping", {"arg": "reachability"}, {}, namespace="baseapi", version="1.0", reply_to=reply_to)


@attrs.frozen(eq=False)
class BaseAPI:
    """Serve namespace "baseapi", version 1.1, as Nova's services do.

    :param service_name: the node's topic.
    :param backdoor_port: TCP port of the node's backdoor; None without a backdoor.
    Source: nova.baserpc.BaseRPCAPI.
    """

    service_name: str
    backdoor_port: int | None = None

    @expose(namespace="baseapi", version="1.0", idempotent=True, counted=False)
    def ping(self, context: RequestContext, arg: Any) -> dict[str, Any]:
        """Return the service's name and the argument."""
        return {"service": self.service_name, "arg": arg}

    @expose(namespace="baseapi", version="1.1", idempotent=True)
    def get_backdoor_port(self, context: RequestContext) -> int | None:
        """Return the TCP port of the backdoor, or None."""
        return self.backdoor_port
