"""A server written with oslo.messaging: it reads the sensors of rooms."""

import os

import oslo_messaging
from oslo_config import cfg

DEGREES = {"kitchen": 21.5, "cellar": 12.0}


class Sensors:
    """The endpoint."""

    def read(self, context: dict[str, object], room: str) -> float:
        """Return the temperature of a room."""
        if room not in DEGREES:
            raise LookupError(f"no sensor in {room!r}")
        return DEGREES[room]


if __name__ == "__main__":
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=os.environ["NOVASVC_TRANSPORT_URL"])
    target = oslo_messaging.Target(exchange="nova", topic="sensors", server="house")
    server = oslo_messaging.get_rpc_server(transport, target, [Sensors()], executor="threading")
    server.start()
    print("sensors are served", flush=True)
    server.wait()
