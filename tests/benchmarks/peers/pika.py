"""pika's BlockingConnection, with the reply queue and correlation ids of RabbitMQ's tutorial.

Server: acknowledges each request; its prefetch is 256, where the tutorial's 1 would hold it back.
Client: one connection with many calls outstanding; a reply's handler makes the next call. It does
not do: envelope, context, dispatch by name, deadlines, confirms, mandatory publishing. Replies are
consumed without acknowledgement.
"""

import json
from time import perf_counter
from typing import Any
from uuid import uuid4

import pika

from tests.benchmarks.peers.command import PAYLOAD, TOPIC, Window, ready, run

QUEUE = f"{TOPIC}.pika"


def serve(url: str) -> None:
    """Echo."""
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.queue_declare(QUEUE)
    channel.basic_qos(prefetch_count=256)

    def echo(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        channel.basic_publish(
            "",
            properties.reply_to,
            json.dumps(json.loads(body)).encode(),
            pika.BasicProperties(correlation_id=properties.correlation_id),
        )
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(QUEUE, echo)
    ready()
    channel.start_consuming()


def call(url: str, in_flight: int, window: Window) -> None:
    """Keep that many calls outstanding."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    replies = channel.queue_declare("", exclusive=True).method.queue
    sent: dict[str, float] = {}

    def send() -> None:
        correlation_id = str(uuid4())
        sent[correlation_id] = perf_counter()
        channel.basic_publish(
            "",
            QUEUE,
            json.dumps(PAYLOAD).encode(),
            pika.BasicProperties(reply_to=replies, correlation_id=correlation_id),
        )

    def replied(_channel: Any, _method: Any, properties: Any, body: bytes) -> None:
        window.answered(sent.pop(properties.correlation_id), json.loads(body))
        send()

    channel.basic_consume(replies, replied, auto_ack=True)
    for _ in range(in_flight):
        send()
    while not window.over:
        connection.process_data_events(time_limit=None)
    connection.close()


if __name__ == "__main__":
    run(serve, call)
