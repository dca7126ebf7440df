"""Describe services as an AsyncAPI 3 document: topics are channels, exposed methods are operations with replies."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from novasvc._version import __version__
from novasvc.rpc.contracts.schema import MethodSchemas, Schema, merge_definitions

FRAMEWORK = frozenset({"node", "baseapi"})
"""Namespaces that every service has; they are left out."""

_DESCRIPTION = (
    "Services of novasvc. A payload is what oslo.messaging's envelope holds as JSON text, in its field oslo.message; "
    "docs/protocol.md has the whole wire format. The address of a channel is the routing key; that of one host is "
    "TOPIC.HOST. A method that is cast, not called, sends no reply."
)


def make_asyncapi(
    answers: Iterable[Mapping[str, Any]], *, unanswered: Mapping[str, str] | None = None, exchange: str = "nova"
) -> dict[str, Any]:
    """Return the AsyncAPI document of services.

    The schemas follow JSON Schema draft 7, as AsyncAPI's do.

    :param answers: of ``node.interface``, one for each topic, as nodes sent them. One that is malformed is left out,
        and named as unanswered.
    :param unanswered: topic -> why its service has not answered; in the document as x-novasvc-unanswered.
    :param exchange: the control exchange.
    """
    missing = dict(unanswered or {})
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {"title": "novasvc", "version": __version__, "description": _DESCRIPTION},
        "defaultContentType": "application/json",
        "channels": {},
        "operations": {},
        "components": {"messages": {}, "schemas": {}},
    }
    for answer in sorted(answers, key=lambda answer: str(answer.get("topic"))):
        topic = str(answer.get("topic"))[:255]
        try:
            _add_service(document, topic, answer, exchange)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            missing[topic] = f"it describes itself wrongly: {type(error).__name__}"
    if missing:
        document["info"]["x-novasvc-unanswered"] = dict(sorted(missing.items()))
    return document


def _add_service(document: dict[str, Any], topic: str, answer: Mapping[str, Any], exchange: str) -> None:
    """Add a service to a document; raise an error before anything is added."""
    rows = [row for row in answer["methods"] if row["namespace"] not in FRAMEWORK]
    prefix = _key(topic)
    methods, definitions = merge_definitions(rows, f"#/components/schemas/{prefix}.")
    requests, replies, operations, messages = {}, {}, {}, {}
    for method in methods:
        row = method.row
        # The same name may be in several interfaces.
        parts = [row["namespace"], f"v{row['version'].partition('.')[0]}" if row["version"][:2] != "1." else None]
        name = ".".join(_key(part) for part in (*parts, row["method"]) if part)
        requests[name] = {"$ref": f"#/components/messages/{prefix}.{name}"}
        replies[name] = {"$ref": f"#/components/messages/{prefix}.{name}.reply"}
        messages[f"{prefix}.{name}"] = _request(method)
        messages[f"{prefix}.{name}.reply"] = _reply(method)
        operations[f"{prefix}.{name}"] = _operation(prefix, name, row)
    shared = {f"{prefix}.{name}": draft_7(schema) for name, schema in definitions.items()}
    binding = {"is": "routingKey", "exchange": {"name": exchange, "type": "topic"}, "bindingVersion": "0.3.0"}
    document["channels"] |= {
        prefix: {"address": topic, "title": topic, "messages": requests, "bindings": {"amqp": binding}},
        f"{prefix}.replies": {"address": None, "title": f"replies of {topic}", "messages": replies},
    }
    document["operations"] |= operations
    document["components"]["messages"] |= messages
    document["components"]["schemas"] |= shared


def _operation(prefix: str, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "action": "receive",
        "title": f"{prefix}.{name}",
        "channel": {"$ref": f"#/channels/{prefix}"},
        "messages": [{"$ref": f"#/channels/{prefix}/messages/{name}"}],
        "reply": {
            "address": {"location": "$message.payload#/_reply_q"},
            "channel": {"$ref": f"#/channels/{prefix}.replies"},
            "messages": [{"$ref": f"#/channels/{prefix}.replies/messages/{name}"}],
        },
        "x-novasvc-idempotent": bool(row["idempotent"]),
        "x-novasvc-raises": [str(error) for error in row["raises"]],
    }
    return operation | ({"summary": str(row["summary"])} if row["summary"] else {})


def _request(method: MethodSchemas) -> dict[str, Any]:
    row = method.row
    given = {
        str(each["name"]): method.arguments.get(each["name"], {}) for each in row["parameters"] if not each["open"]
    }
    args: Schema = {
        "type": "object",
        "properties": given,
        "required": [str(each["name"]) for each in row["parameters"] if each["required"]],
        "additionalProperties": any(each["open"] for each in row["parameters"]),
    }
    properties: Schema = {
        "method": {"const": str(row["method"])},
        "args": args,
        "version": {"type": "string", "description": f"Of the interface; the service has {row['version']}."},
        "_msg_id": {"type": "string", "description": "Of the call; its reply has it, too."},
        "_reply_q": {"type": "string", "description": "The queue of the replies."},
    }
    required = ["method", "args"]
    if row["namespace"]:
        properties["namespace"] = {"const": str(row["namespace"])}
        required.append("namespace")
    payload = {"type": "object", "properties": properties, "required": required}
    return {"name": str(row["method"]), "payload": draft_7(payload)}


def _reply(method: MethodSchemas) -> dict[str, Any]:
    failure = {"type": ["string", "null"], "description": "The error that the method raised, as JSON text; else null."}
    properties = {
        "result": {"anyOf": [method.result, {"type": "null"}]} if method.result else {},
        "failure": failure,
        "ending": {"type": "boolean", "description": "Whether it is the last message of the reply."},
        "_msg_id": {"type": "string", "description": "Of the call."},
    }
    return {
        "name": f"{method.row['method']}.reply",
        "payload": draft_7({"type": "object", "properties": properties, "required": ["_msg_id"]}),
    }


def draft_7(schema: Any) -> Any:
    """Return a JSON Schema (2020-12) of msgspec's as one of draft 7, with AsyncAPI's discriminator."""
    if isinstance(schema, list):
        return [draft_7(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: draft_7(value) for key, value in schema.items()}
    if isinstance(schema.get("prefixItems"), list):
        changed["items"] = changed.pop("prefixItems")
    if "anyOf" in schema and isinstance(schema.get("discriminator"), dict):
        changed["discriminator"] = str(schema["discriminator"].get("propertyName"))
    return changed


def _key(text: str) -> str:
    """Return a text as a key of components."""
    return re.sub(r"[^\w.\-]", "_", str(text), flags=re.ASCII)[:255] or "_"
