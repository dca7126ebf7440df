"""AMQP 0-9-1 with RabbitMQ's extensions as a txamqp spec; txamqp ships none.

Written as a table, from the protocol's facts. Each line is a method: its id, its name, ``>`` and
the methods that answer it, ``:`` and its arguments. ``*`` marks a method that carries content.

Source: AMQP 0-9-1 1.4 to 1.9 and its published errata; RabbitMQ's exchange.bind, basic.nack, connection.blocked,
connection.update-secret and confirm. Fields that 0-9-1 no longer uses are called reserved, and keep their defaults.
"""

import re

from txamqp.spec import Class, Constant, Field, Method, Spec, SpecContainer

_CLASSES = """
connection 10
    10  start            > start-ok          : octet version-major, octet version-minor, table server-properties, longstr mechanisms, longstr locales
    11  start-ok                             : table client-properties, shortstr mechanism, longstr response, shortstr locale
    20  secure           > secure-ok         : longstr challenge
    21  secure-ok                            : longstr response
    30  tune             > tune-ok           : short channel-max, long frame-max, short heartbeat
    31  tune-ok                              : short channel-max, long frame-max, short heartbeat
    40  open             > open-ok           : shortstr virtual-host, shortstr reserved-1, bit reserved-2
    41  open-ok                              : shortstr reserved-1
    50  close            > close-ok          : short reply-code, shortstr reply-text, short class-id, short method-id
    51  close-ok
    60  blocked                              : shortstr reason
    61  unblocked
    70  update-secret    > update-secret-ok  : longstr new-secret, shortstr reason
    71  update-secret-ok
channel 20
    10  open             > open-ok           : shortstr reserved-1
    11  open-ok                              : longstr reserved-1
    20  flow             > flow-ok           : bit active
    21  flow-ok                              : bit active
    40  close            > close-ok          : short reply-code, shortstr reply-text, short class-id, short method-id
    41  close-ok
exchange 40
    10  declare          > declare-ok        : short reserved-1, shortstr exchange, shortstr type, bit passive, bit durable, bit auto-delete, bit internal, bit no-wait, table arguments
    11  declare-ok
    20  delete           > delete-ok         : short reserved-1, shortstr exchange, bit if-unused, bit no-wait
    21  delete-ok
    30  bind             > bind-ok           : short reserved-1, shortstr destination, shortstr source, shortstr routing-key, bit no-wait, table arguments
    31  bind-ok
    40  unbind           > unbind-ok         : short reserved-1, shortstr destination, shortstr source, shortstr routing-key, bit no-wait, table arguments
    51  unbind-ok
queue 50
    10  declare          > declare-ok        : short reserved-1, shortstr queue, bit passive, bit durable, bit exclusive, bit auto-delete, bit no-wait, table arguments
    11  declare-ok                           : shortstr queue, long message-count, long consumer-count
    20  bind             > bind-ok           : short reserved-1, shortstr queue, shortstr exchange, shortstr routing-key, bit no-wait, table arguments
    21  bind-ok
    30  purge            > purge-ok          : short reserved-1, shortstr queue, bit no-wait
    31  purge-ok                             : long message-count
    40  delete           > delete-ok         : short reserved-1, shortstr queue, bit if-unused, bit if-empty, bit no-wait
    41  delete-ok                            : long message-count
    50  unbind           > unbind-ok         : short reserved-1, shortstr queue, shortstr exchange, shortstr routing-key, table arguments
    51  unbind-ok
basic 60
    10  qos              > qos-ok            : long prefetch-size, short prefetch-count, bit global
    11  qos-ok
    20  consume          > consume-ok        : short reserved-1, shortstr queue, shortstr consumer-tag, bit no-local, bit no-ack, bit exclusive, bit no-wait, table arguments
    21  consume-ok                           : shortstr consumer-tag
    30  cancel           > cancel-ok         : shortstr consumer-tag, bit no-wait
    31  cancel-ok                            : shortstr consumer-tag
    40  publish*                             : short reserved-1, shortstr exchange, shortstr routing-key, bit mandatory, bit immediate
    50  return*                              : short reply-code, shortstr reply-text, shortstr exchange, shortstr routing-key
    60  deliver*                             : shortstr consumer-tag, longlong delivery-tag, bit redelivered, shortstr exchange, shortstr routing-key
    70  get              > get-ok get-empty  : short reserved-1, shortstr queue, bit no-ack
    71  get-ok*                              : longlong delivery-tag, bit redelivered, shortstr exchange, shortstr routing-key, long message-count
    72  get-empty                            : shortstr reserved-1
    80  ack                                  : longlong delivery-tag, bit multiple
    90  reject                               : longlong delivery-tag, bit requeue
    100 recover-async                        : bit requeue
    110 recover          > recover-ok        : bit requeue
    111 recover-ok
    120 nack                                 : longlong delivery-tag, bit multiple, bit requeue
confirm 85
    10  select           > select-ok         : bit no-wait
    11  select-ok
tx 90
    10  select           > select-ok
    11  select-ok
    20  commit           > commit-ok
    21  commit-ok
    30  rollback         > rollback-ok
    31  rollback-ok
"""  # noqa: E501 - a table

_PROPERTIES = (
    "shortstr content-type, shortstr content-encoding, table headers, octet delivery-mode, octet priority, "
    "shortstr correlation-id, shortstr reply-to, shortstr expiration, shortstr message-id, timestamp timestamp, "
    "shortstr type, shortstr user-id, shortstr app-id, shortstr cluster-id"
)
"""Properties of class basic, the only class with content."""

_CONSTANTS = {
    "frame-method": 1,
    "frame-header": 2,
    "frame-body": 3,
    "frame-heartbeat": 8,
    "frame-end": 206,
    "frame-min-size": 4096,
    "reply-success": 200,
    "content-too-large": 311,
    "no-route": 312,
    "no-consumers": 313,
    "connection-forced": 320,
    "invalid-path": 402,
    "access-refused": 403,
    "not-found": 404,
    "resource-locked": 405,
    "precondition-failed": 406,
    "frame-error": 501,
    "syntax-error": 502,
    "command-invalid": 503,
    "channel-error": 504,
    "unexpected-frame": 505,
    "resource-error": 506,
    "not-allowed": 530,
    "not-implemented": 540,
    "internal-error": 541,
}


def _load() -> Spec:
    spec = Spec(0, 9, __file__)
    for name, value in _CONSTANTS.items():
        spec.constants.add(Constant(spec, name, value, None, []))
    for block in re.split(r"\n(?=\w)", _CLASSES.strip()):
        head, *lines = block.splitlines()
        spec.classes.add(_class(spec, head, lines))
    _add_fields(spec.classes.byname["basic"].fields, _PROPERTIES)
    # Not post_load(): it compiles each method a second time, for a module that nothing reads.
    spec.klass = spec.define_class("AMQP")
    return spec


def _class(spec: Spec, head: str, lines: list[str]) -> Class:
    name, number = head.split()
    kind = Class(spec, name, int(number), "connection" if name == "connection" else "channel", [])
    for line in lines:
        kind.methods.add(_method(kind, line))
    for method in kind.methods:
        method.responses = [kind.methods.byname[answer] for answer in method.responses]
        for answer in method.responses:
            answer.response = True
    return kind


def _method(kind: Class, line: str) -> Method:
    left, _, arguments = line.partition(":")
    left, _, answers = left.partition(">")
    number, name = left.split()
    names = answers.split()
    method = Method(kind, name.rstrip("*"), int(number), name.endswith("*"), names, bool(names), "", [])
    _add_fields(method.fields, arguments)
    return method


def _add_fields(fields: SpecContainer, text: str) -> None:
    for place, field in enumerate(text.split(",") if text.strip() else ()):
        kind, name = field.split()
        fields.add(Field(name, place, kind, []))


SPEC = _load()
"""The spec. Its ``klass`` has all methods, named "queue_declare" and so on; ``parse_method`` finds one by
a name such as "queue.declare"."""
