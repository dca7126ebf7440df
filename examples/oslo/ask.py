"""A client written with oslo.messaging: ask.py ROOM..."""

import os
import sys

import oslo_messaging
from oslo_config import cfg


def ask(rooms: list[str]) -> str:
    """Ask for the temperatures of rooms; return a sentence."""
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=os.environ["NOVASVC_TRANSPORT_URL"])
    target = oslo_messaging.Target(exchange="nova", topic="rooms")
    client = oslo_messaging.get_rpc_client(transport, target, timeout=10)
    degrees = client.call({}, "degrees", rooms=rooms)
    shown = ", ".join(f"{room} {value}" for room, value in degrees.items())
    return f"{shown}: {sum(degrees.values()) / len(degrees):.1f} degrees on average"


if __name__ == "__main__":
    try:
        print(ask(sys.argv[1:]))
    except LookupError as error:
        print(str(error).splitlines()[0])
