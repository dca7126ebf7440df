"""Encode and decode RPC messages in oslo.messaging's format, with pure functions.

A message is a JSON object with two strings: ``oslo.version``, and ``oslo.message``, which is the body
as JSON text.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from novasvc.rpc.errors import InvalidArgumentsError, MessageFormatError, ResultNotSerializableError
from novasvc.rpc.failures.origin import mark_outgoing
from novasvc.rpc.ids import new_id
from novasvc.rpc.payload import dumps, encode_parts, loads, loads_at, quote
from novasvc.rpc.version import compatible

BODY_LIMIT = 16 * 2**20
"""The most bytes of a message: RabbitMQ's default limit. A larger message is neither sent nor read."""

NAME_LIMIT = 255
"""The most characters of a method's name, of an id and of an address; they are quoted in logs and errors."""

SHORTEST_KEEPALIVE = 2
"""Seconds between keepalives, at least; a request for shorter intervals gets none."""
_LONGEST_KEEPALIVE = 86_400

_VERSION = "oslo.version"
_MESSAGE = "oslo.message"
_CONTEXT = "_context_"
_CONTEXT_LENGTH = len(_CONTEXT)
_ENVELOPE_VERSION = "2.0"
SIGNATURE = "novasvc.signature"
"""The envelope's field of :mod:`novasvc.rpc.identity.signature`."""
_PREFIX = f'{{"{_VERSION}": "{_ENVELOPE_VERSION}", "{_MESSAGE}": '
_PREFIX_LENGTH = len(_PREFIX)
_OWN = "novasvc"
"""The field that only novasvc writes and reads; peers ignore it."""


class ReplyTo(NamedTuple):
    """The return address of a call.

    :param msg_id: the call's message id, repeated in the reply.
    :param address: the reply address, opaque to the server.
    """

    msg_id: str
    address: str


class Request(NamedTuple):
    """A decoded request.

    :param method: the method's name.
    :param args: JSON values by name.
    :param context: the context's entries, by name without the prefix.
    :param namespace: the interface's name; None is the interface without a name.
    :param version: the version that the caller requires; None (sent as null) matches no method.
    :param reply_to: the return address; None for a cast.
    :param unique_id: the message's id, unique for each message; None if the sender sent none.
    :param keepalive: seconds between keepalives, as the caller asked; None for no keepalives.
    :param problem: why the request cannot be run; None if it can. With a problem, only ``context`` and ``reply_to``
        are valid.
    :param options: what only our clients ask for, from the field "novasvc": {"progress": true, "gather": true,
        "timeout": seconds}, not checked; None without the field.
    """

    method: str
    args: dict[str, Any]
    context: dict[str, Any]
    namespace: str | None = None
    version: str | None = "1.0"
    reply_to: ReplyTo | None = None
    unique_id: str | None = None
    keepalive: int | None = None
    problem: str | None = None
    options: dict[str, Any] | None = None


class Progress(NamedTuple):
    """How far a method is.

    :param fraction: from 0.0 to 1.0.
    :param text: what it does; may be "".
    """

    fraction: float
    text: str


class Reply(NamedTuple):
    """A decoded reply.

    :param msg_id: the request's message id.
    :param result: JSON value; None in a failure and in a keepalive.
    :param failure: JSON text, see :mod:`novasvc.rpc.failures.failure`; None if the method did not fail.
    :param final: True for the last reply to the request; False for a keepalive or a partial reply.
    :param extra: what only our servers send, from the field "novasvc": {"host": str, "progress": {"fraction", "text"}},
        not checked; None without the field.
    """

    msg_id: str
    result: Any = None
    failure: str | None = None
    final: bool = True
    extra: dict[str, Any] | None = None


def encode_request(
    method: str,
    args: Mapping[str, Any],
    context: Mapping[str, Any],
    *,
    namespace: str | None = None,
    version: str | None = None,
    reply_to: ReplyTo | None = None,
    keepalive: int | None = None,
    options: Mapping[str, Any] | None = None,
    limit: int = BODY_LIMIT,
    sign: Callable[[str], Mapping[str, Any]] | None = None,
) -> bytes:
    """Encode a call, or a cast if ``reply_to`` is None.

    :param args: arguments by name, of the types that :func:`novasvc.rpc.payload.dumps` accepts.
    :param context: the context's entries, by name without the prefix.
    :param namespace: None omits the field.
    :param version: None omits the field; the receiver then assumes "1.0".
    :param keepalive: seconds between keepalives, at least SHORTEST_KEEPALIVE; None asks for none.
    :param options: as in :class:`Request`; None omits the field.
    :param limit: the most bytes of the message.
    :param sign: takes the body's JSON text, returns its signature; None leaves the message unsigned.
    :raises InvalidArgumentsError: JSON cannot hold an argument, or the message is over the limit.
    """
    body: dict[str, Any] = {"method": method, "args": args}
    if namespace is not None:
        body["namespace"] = namespace
    if version is not None:
        body["version"] = version
    if reply_to is not None:
        body["_msg_id"], body["_reply_q"] = reply_to
        body["_timeout"] = keepalive
    body["_unique_id"] = new_id()
    if options is not None:
        body[_OWN] = options
    for name, value in context.items():
        body[_CONTEXT + name] = value
    try:
        try:
            text = "".join(encode_parts(body, 0))
        except Exception:  # noqa: BLE001 - to read the fields of a user's object can raise anything
            text = dumps(body, "the request")  # Its error says which part JSON cannot hold.
        return wrap(text, limit) if sign is None else wrap(text, limit, sign(text))
    except ValueError as error:
        invalid = InvalidArgumentsError(method, str(error))
        mark_outgoing(invalid)
        raise invalid from None


def encode_result(
    msg_id: str, result: Any, method: str, limit: int = BODY_LIMIT, *, extra: Mapping[str, Any] | None = None
) -> bytes:
    """Encode the reply that holds a result.

    :param method: the method's name, for the error.
    :param extra: as in :class:`Reply`.
    :raises ResultNotSerializableError: JSON cannot hold the result, or the message is over the limit.
    """
    try:
        try:
            text = "".join(encode_parts(result, 0))
        except Exception:  # noqa: BLE001 - as above
            text = dumps(result, "the result")  # Its error says which part JSON cannot hold.
        return wrap(_reply_text(msg_id, result=text, extra=extra), limit)
    except ValueError as error:
        raise ResultNotSerializableError(method, str(error)) from None


def encode_failure(msg_id: str, failure: str, extra: Mapping[str, Any] | None = None) -> bytes:
    """Encode the reply that holds a failure.

    :param failure: JSON text, see :mod:`novasvc.rpc.failures.failure`.
    :param extra: as in :class:`Reply`.
    :raises ValueError: the message is over the limit.
    """
    return wrap(_reply_text(msg_id, failure=quote(failure), extra=extra))


def encode_keepalive(msg_id: str, progress: Progress | None = None) -> bytes:
    """Encode a keepalive: a reply that is not the last one.

    :param progress: sent with it, for callers that read it; for all others it is a keepalive.
    """
    extra = None if progress is None else {"progress": progress._asdict()}
    return wrap(_reply_text(msg_id, final="false", extra=extra))


def _reply_text(
    msg_id: str,
    *,
    result: str = "null",
    failure: str = "null",
    final: str = "true",
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Build a reply's JSON from encoded values; this is faster than encoding the keys each time."""
    own = "" if extra is None else f', "{_OWN}": {dumps(extra, "the reply")}'
    return (
        f'{{"result": {result}, "failure": {failure}, "ending": {final}, '
        f'"_msg_id": {quote(msg_id)}, "_unique_id": "{new_id()}"{own}}}'
    )


def wrap(text: str, limit: int = BODY_LIMIT, signature: Mapping[str, Any] | None = None) -> bytes:
    """Put a body's JSON text into the envelope, and return the message.

    :param signature: of the text; None leaves it unsigned.
    :raises ValueError: the message is over the limit.
    """
    end = "}" if signature is None else f', "{SIGNATURE}": {dumps(signature, "the signature")}}}'
    message = f"{_PREFIX}{quote(text)}{end}".encode("ascii")
    if len(message) > limit:
        problem = f"the message is {len(message)} bytes long; the limit is {limit}"
        raise ValueError(problem)
    return message


def unwrap(message: bytes, limit: int = BODY_LIMIT) -> dict[str, Any]:
    """Return the fields of a message's body. An object without an envelope is the body itself.

    :raises MessageFormatError: the message is over the limit, not UTF-8, not JSON, not an object, or its
        envelope has an incompatible version.
    """
    if len(message) > limit:
        problem = f"it is {len(message)} bytes long; the limit is {limit}"
        raise MessageFormatError(problem)
    try:
        text = message.decode()
    except UnicodeDecodeError:
        problem = "it is not UTF-8"
        raise MessageFormatError(problem) from None
    if text.startswith(_PREFIX):
        # Fast path for the envelope as json.dumps writes it, which is what every peer sends. A message that does
        # not fit is parsed again below, by the full rules.
        try:
            inner, end = loads_at(text, _PREFIX_LENGTH)
            fields, inner_end = loads_at(inner, 0)
        except (TypeError, ValueError, StopIteration, RecursionError):
            pass
        else:
            whole = end == len(text) - 1 and inner_end == len(inner) and text.endswith("}")
            if whole and isinstance(fields, dict):
                return fields
    return _open_envelope(_parse_object(text, "it"))


def split_envelope(message: bytes) -> tuple[str, dict[str, Any] | None]:
    """Return the JSON text within a message's envelope, and its signature; None if there is none.

    :param message: one that :func:`unwrap` has read.
    """
    outer = loads(message.decode())
    # Of an object that is no envelope, unwrap() returns the object itself, so a signature in it is of something else.
    inner, signature = outer.get(_MESSAGE) if _VERSION in outer else None, outer.get(SIGNATURE)
    return (inner, signature) if isinstance(inner, str) and isinstance(signature, dict) else ("", None)


def _open_envelope(outer: dict[str, Any]) -> dict[str, Any]:
    if _VERSION not in outer or _MESSAGE not in outer:
        return outer  # The form before envelopes, which oslo.messaging reads too (its deserialize_msg).
    version, inner = outer[_VERSION], outer[_MESSAGE]
    if version != _ENVELOPE_VERSION:
        _check_envelope(version)
    if not isinstance(inner, str):
        problem = f"{_MESSAGE} is not a string"
        raise MessageFormatError(problem)
    return _parse_object(inner, _MESSAGE)


def read_request(fields: Mapping[str, Any]) -> Request:
    """Decode a request; unknown fields are ignored.

    :param fields: the fields that :func:`unwrap` returned.
    :return: the request, with a ``problem`` if a field is missing, too long or has the wrong type.
    """
    method, args = fields.get("method"), fields.get("args", _EMPTY)
    # Without a version, oslo.messaging's dispatcher assumes 1.0 too.
    namespace, version = fields.get("namespace"), fields.get("version", "1.0")
    unique_id, keepalive, options = fields.get("_unique_id"), fields.get("_timeout"), fields.get(_OWN)
    if not isinstance(method, str):
        problem = "'method' is missing, or not a string"
    elif len(method) > NAME_LIMIT:
        problem = f"'method' is longer than {NAME_LIMIT} characters"
    elif isinstance(unique_id, str) and len(unique_id) > NAME_LIMIT:
        problem = f"'_unique_id' is longer than {NAME_LIMIT} characters"
    elif not isinstance(args, dict):
        problem = "'args' is not an object"
    elif namespace is not None and not isinstance(namespace, str):
        problem = "'namespace' is not a string"
    elif version is not None and not isinstance(version, str):
        problem = "'version' is not a string"
    elif len(namespace or "") > NAME_LIMIT or len(version or "") > NAME_LIMIT:
        problem = f"'namespace' or 'version' is longer than {NAME_LIMIT} characters"
    else:
        return Request(
            method,
            args,
            read_context(fields),
            namespace,
            version,
            read_reply_to(fields),
            unique_id if isinstance(unique_id, str) and unique_id else None,
            None if keepalive is None else _whole_seconds(keepalive),
            None,
            options if isinstance(options, dict) else None,
        )
    return Request("", _EMPTY, read_context(fields), reply_to=read_reply_to(fields), problem=problem)


def read_context(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the context's entries, by name without the prefix, even of a request with a problem."""
    return {name[_CONTEXT_LENGTH:]: value for name, value in fields.items() if name.startswith(_CONTEXT)}


def read_reply_to(fields: Mapping[str, Any]) -> ReplyTo | None:
    """Return a request's return address, even of a request with a problem; None for a cast."""
    msg_id, address = fields.get("_msg_id"), fields.get("_reply_q")
    if not (isinstance(msg_id, str) and isinstance(address, str)):
        return None
    # Bounded, because the reply repeats the id and must not exceed the limit of a message because of it.
    return ReplyTo(msg_id, address) if len(msg_id) <= NAME_LIMIT and 0 < len(address) <= NAME_LIMIT else None


def read_reply(fields: Mapping[str, Any]) -> Reply:
    """Decode a reply.

    :param fields: the fields that :func:`unwrap` returned.
    :raises MessageFormatError: there is no message id.
    """
    msg_id, failure, extra = fields.get("_msg_id"), fields.get("failure"), fields.get(_OWN)
    if not isinstance(msg_id, str):
        problem = "'_msg_id' is missing, or not a string"
        raise MessageFormatError(problem)
    if failure and not isinstance(failure, str):
        failure = "null"  # The call must fail, even if the error cannot be read.
    return Reply(
        msg_id,
        fields.get("result"),
        failure or None,
        fields.get("ending") is True,
        extra if isinstance(extra, dict) else None,
    )


_EMPTY: dict[str, Any] = {}
"""Shared by all requests without arguments, and never changed."""


def _parse_object(text: str, what: str) -> dict[str, Any]:
    try:
        value = loads(text)
    except RecursionError:
        problem = f"{what} is nested too deeply"
    except ValueError:
        problem = f"{what} is not JSON"
    else:
        if isinstance(value, dict):
            return value
        problem = f"{what} is not an object"
    raise MessageFormatError(problem) from None


def _check_envelope(version: object) -> None:
    """Raise MessageFormatError for an incompatible envelope version; not quoted, because it may have any length."""
    try:
        if isinstance(version, str) and compatible(_ENVELOPE_VERSION, version):
            return
    except ValueError:
        pass
    problem = f"the version of its envelope is not {_ENVELOPE_VERSION}"
    raise MessageFormatError(problem)


def _whole_seconds(keepalive: object) -> int | None:
    """Return the seconds of ``_timeout``, which peers send as a number or a string.

    :return: at most _LONGEST_KEEPALIVE; None if the value is not a number or is below SHORTEST_KEEPALIVE.
    """
    try:
        seconds = int(keepalive) if isinstance(keepalive, int | float | str) else 0
    except (ValueError, OverflowError):
        return None
    return min(seconds, _LONGEST_KEEPALIVE) if seconds >= SHORTEST_KEEPALIVE else None
