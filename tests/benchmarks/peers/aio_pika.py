"""aio-pika's own RPC pattern (patterns.JsonRPC), on asyncio.

Dispatch by name, replies by correlation id, publisher confirms and mandatory requests, as it comes.
It does not do: context, versions, envelope.
"""

import asyncio
from time import perf_counter
from typing import Any

from aio_pika import connect_robust
from aio_pika.patterns import JsonRPC

from tests.benchmarks.peers.command import PAYLOAD, TOPIC, Window, ready, run

QUEUE = f"{TOPIC}.aio_pika"


def serve(url: str) -> None:
    """Echo."""

    async def echo(*, value: Any) -> Any:
        return value

    async def main() -> None:
        connection = await connect_robust(url)
        async with connection:
            channel = await connection.channel()
            rpc = await JsonRPC.create(channel)
            await rpc.register(QUEUE, echo)
            ready()
            await asyncio.Future()

    asyncio.run(main())


def call(url: str, in_flight: int, window: Window) -> None:
    """Have that many coroutines call one after another."""

    async def main() -> None:
        connection = await connect_robust(url)
        async with connection:
            rpc = await JsonRPC.create(await connection.channel())

            async def caller() -> None:
                while not window.over:
                    sent = perf_counter()
                    window.answered(sent, await rpc.call(QUEUE, {"value": PAYLOAD}))

            await asyncio.gather(*(caller() for _ in range(in_flight)))

    asyncio.run(main())


if __name__ == "__main__":
    run(serve, call)
