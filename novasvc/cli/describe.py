"""``novasvc describe``: what a service offers to callers."""

import json
from collections.abc import Iterator
from typing import Any

import attrs
import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.output import printable
from novasvc.cli.remote import run_with_client, target_options
from novasvc.config import Settings
from novasvc.context import RequestContext
from novasvc.rpc.contracts.asyncapi import FRAMEWORK, make_asyncapi
from novasvc.rpc.failures.reply import wait_for_reply
from novasvc.rpc.target import Target

_TIMEOUT = 5.0


@click.command(epilog="Example: novasvc describe agent")
@target_options
@click.option("--all", "everything", is_flag=True, help="Also the methods that every service has.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, with the JSON Schemas of the methods.")
@click.option("--asyncapi", is_flag=True, help="Print the methods as an AsyncAPI 3 document.")
@pass_command_context
def describe(
    context: CommandContext,
    target: Target,
    everything: bool,  # noqa: FBT001 - click's
    as_json: bool,  # noqa: FBT001 - click's
    asyncapi: bool,  # noqa: FBT001 - click's
) -> None:
    """Show the methods of a service of TOPIC, or of the one on HOST: arguments, results, errors; and its tasks.

    The API serves the AsyncAPI document of all services at /asyncapi.json.
    """
    settings = context.configuration.settings
    answer = read_interface(settings, target)
    if asyncapi:
        click.echo(json.dumps(make_asyncapi([answer], exchange=settings.control_exchange), indent=2))
    else:
        click.echo(json.dumps(answer) if as_json else described(answer, everything=everything))


def read_interface(settings: Settings, target: Target) -> dict[str, Any]:
    """Ask a service what it offers; see :meth:`novasvc.node.endpoint.NodeAPI.interface`."""

    async def work(client: Any, _reactor: Any) -> dict[str, Any]:
        asking = client.prepare(timeout=_TIMEOUT, idempotent=True).call(RequestContext.admin(), "interface")
        answer: dict[str, Any] = await wait_for_reply(asking)
        return answer

    return run_with_client(settings, attrs.evolve(target, namespace="node", version="1.1"), work)


def described(answer: dict[str, Any], *, everything: bool = False) -> str:
    """Return what a service offers, as text for people.

    :param answer: of ``node.interface``.
    :param everything: also the methods of the framework's namespaces.
    """
    lines = [f"{answer['topic']} on {answer['host']} ({answer['binary']})", "", "methods"]
    methods = [row for row in answer["methods"] if everything or row["namespace"] not in FRAMEWORK]
    for row in methods:
        lines.append(f"  {row['method']}{row['signature']}")
        notes = [f"namespace {row['namespace']}"] if row["namespace"] else []
        notes += [f"version {row['version']}"] if row["version"] != "1.0" else []
        notes += [f"raises {', '.join(row['raises'])}"] if row["raises"] else []
        notes += ["idempotent"] if row["idempotent"] else []
        notes += [f"needs {row['allow']}"] if row.get("allow") else []
        notes += [f"timeout {row['timeout']:g} s"] if row["timeout"] else []
        lines += [f"      {text}" for text in (row["summary"], "; ".join(notes)) if text]
    if not methods:
        lines.append("  none: decorate a method of the manager with @rpc.expose")
    handlers = answer.get("events", [])  # a node of a release before events tells none
    types = {name: kind for row in (*methods, *handlers) for name, kind in _types(row)}
    if types:
        lines += ["", "types", *(f"  {name}  {_fields(types[name])}" for name in sorted(types))]
    errors = answer.get("errors") or []  # an older service does not list them
    if errors:
        lines += ["", "errors"]
    for error in errors:
        lines.append(f"  {error['name']}{error['signature']}  {error['module']}")
        lines += [f"      {error['summary']}"] if error["summary"] else []
    if handlers:
        lines += ["", "events"]
    for row in handlers:
        lines.append(f"  {', '.join(row['patterns'])}  {row['handler']}")
        lines += [f"      {row['summary']}"] if row["summary"] else []
    if answer["tasks"]:
        lines += ["", "tasks", *(f"  {task['name']}  {_schedule(task)}" for task in answer["tasks"])]
    return "\n".join(printable(line) for line in lines)


def _types(row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the classes that the JSON Schemas of a method or handler name; not that of its arguments as a whole."""
    for name, kind in ((row["schema"] or {}).get("$defs") or {}).items():
        if name != f"{row.get('method') or row['handler']}_arguments":
            yield name, kind


def _fields(kind: dict[str, Any]) -> str:
    """Return a JSON Schema in one line: "{item: string, amount: integer = 1}", or the values of an enum."""
    if "enum" in kind:
        return " | ".join(map(json.dumps, kind["enum"]))
    fields = []
    for name, field in kind.get("properties", {}).items():
        default = f" = {json.dumps(field['default'])}" if "default" in field else ""
        fields.append(f"{name}: {_type_name(field)}{default}")
    return "{" + ", ".join(fields) + "}"


def _type_name(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "anyOf" in field:
        return " | ".join(map(_type_name, field["anyOf"]))
    if field.get("type") == "array" and isinstance(field.get("items"), dict):
        return f"[{_type_name(field['items'])}]"
    # "date-time-local" has no offset, and is in UTC: people would read "local" as the time of their zone.
    return str(field.get("format") or field.get("type") or "any").removesuffix("-local")


def _schedule(task: dict[str, Any]) -> str:
    # A node of an earlier version names neither scope nor cron line.
    scope = {"worker": "in each worker", "node": "once a node", "fleet": "once a fleet"}.get(task.get("scope") or "")
    when = f"every {task['spacing']:g} s" if task["spacing"] else "in each pass"
    if task.get("cron"):
        when = f"at {task['cron']} ({task.get('timezone')})"
    return f"{when}, {scope}" if scope else when
