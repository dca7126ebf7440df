"""A manager that calls a server written with oslo.messaging."""

from novasvc import Manager, RequestContext, rpc


class Rooms(Manager):
    """Knows the temperatures of rooms."""

    @rpc.expose(expected=(LookupError,))
    async def degrees(self, context: RequestContext, rooms: list[str]) -> dict[str, float]:
        """Return the temperature of each room.

        :raises LookupError: a room has no sensor. The sensors' server raised it.
        """
        sensors = self.attachments.rpc.prepare(topic="sensors", timeout=5)
        return {room: await sensors.call(context, "read", room=room) for room in rooms}
