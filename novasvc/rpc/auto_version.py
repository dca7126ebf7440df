"""Version caps that follow the services that are up: the oldest of a topic decides which version may be sent.

Source: nova.compute.rpcapi and [upgrade_levels] compute=auto; nova.objects.service.get_minimum_version.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.interfaces import IReactorTime

from novasvc.reactor.refresh import RefreshedValue
from novasvc.rpc.checks import Checked
from novasvc.rpc.errors import RPCVersionCapError, UnsupportedVersionError
from novasvc.rpc.replies import PendingCalls
from novasvc.rpc.target import Target
from novasvc.rpc.version import Version, compatible, parse_version

REFRESH = 30.0
"""Seconds between two looks at the services of a topic, while it is called."""

_PATIENCE = 3.0
"""Seconds that the first call waits for the cap; then it is sent without one."""

_MAX_TOPICS = 100
_UNVERSIONED = "1.0"
"""What a receiver takes a message without a version for."""

ServedVersions = Mapping[str | None, Sequence[str]]
"""Namespace -> the highest version of each major version that is served."""


@attrs.frozen
class OldestServices:
    """The services of a topic that are not down and have the lowest service version.

    :param version: that service version.
    :param hosts: the hosts of some of them, at least one; and of others, in case those do not answer.
    """

    version: int
    hosts: tuple[str, ...]


OldestFunction = Callable[[str], Deferred[OldestServices | None]]
"""Find the oldest services of a topic; None if none is up. Fires within a bound of its own, and may fail."""

AskInterface = Callable[[Target], Awaitable[Any]]
"""Ask a node for its methods, as the method "interface" of the namespace "node" describes them."""


@attrs.frozen
class TopicVersions:
    """What is known of a topic.

    :param oldest: its oldest services.
    :param served: what they serve; empty if they were not asked, or do not say it.
    """

    oldest: OldestServices
    served: ServedVersions = attrs.field(factory=dict)


class FleetVersions:
    """What is known of the topics that a client, and all clients prepared from it, call with a cap that follows them.

    :param oldest: asks the registry; see :class:`novasvc.registry.versions.OldestUp`.
    :param ask: asks a node.
    """

    def __init__(self, oldest: OldestFunction, ask: AskInterface, clock: IReactorTime) -> None:
        self._oldest = oldest
        self._ask = ask
        self._clock = clock
        self._topics: dict[tuple[str, bool], RefreshedValue[TopicVersions]] = {}

    def topic(self, topic: str, *, served: bool) -> RefreshedValue[TopicVersions]:
        """Return what is known of a topic.

        :param served: ask its oldest services what they serve.
        """
        key = topic, served
        found = self._topics.get(key)
        if found is None:
            found = self._topics[key] = RefreshedValue(
                lambda: Deferred.fromCoroutine(self._read(topic, served=served)), self._clock, REFRESH, inf, _PATIENCE
            )
            if len(self._topics) > _MAX_TOPICS:
                del self._topics[next(iter(self._topics))]
        return found

    async def _read(self, topic: str, *, served: bool) -> TopicVersions:
        """Read what is known of a topic.

        :raises LookupError: none of its services is up, or none says what it serves: what was known stays.
        :raises NovasvcError: the registry is away, or this is not the reactor's thread.
        """
        PendingCalls.check_thread()
        oldest = await self._oldest(topic)
        if oldest is None:
            raise LookupError(f"no service with the topic {topic!r} is up")
        if not served:
            return TopicVersions(oldest)
        # Several, because service_version may not tell old code from new: its author has to raise it.
        asking = [
            Deferred.fromCoroutine(_read_interface(self._ask, Target(topic, host, namespace="node", version="1.1")))
            for host in oldest.hosts
        ]
        outcomes = await DeferredList(asking, consumeErrors=True)
        answers = [answer for succeeded, answer in outcomes if succeeded]
        if not answers:
            raise LookupError(f"no service with the topic {topic!r} says which versions it serves")
        return TopicVersions(oldest, _served_by_all(answers))


async def _read_interface(ask: AskInterface, target: Target) -> dict[str | None, dict[int, Version]]:
    """Ask a node for the versions that it serves: namespace -> major version -> highest version.

    :raises Exception: the node does not answer, or not in this form.
    """
    answer = await ask(target)
    served: dict[str | None, dict[int, Version]] = {}
    for row in answer["methods"]:
        version = parse_version(row["version"])
        majors = served.setdefault(row["namespace"], {})
        majors[version[0]] = max(version, majors.get(version[0], version))
    return served


def _served_by_all(answers: Sequence[dict[str | None, dict[int, Version]]]) -> ServedVersions:
    first, *others = answers
    return {
        namespace: [
            "{}.{}".format(*min(answer[namespace][major] for answer in answers))
            for major in sorted(majors)
            if all(major in other.get(namespace, ()) for other in others)
        ]
        for namespace, majors in first.items()
    }


@attrs.frozen(eq=False)
class AutoCap:
    """The version cap of a client that follows the services of its target's topic.

    :param versions: what is known of topics.
    :param table: service version -> RPC version, or several with different major versions, that services have from this
        service version on; None asks the services.
    :raises ValueError: the table is empty or malformed.
    """

    _versions: FleetVersions
    _table: Mapping[int, str | Sequence[str]] | None = attrs.field(default=None)

    def __attrs_post_init__(self) -> None:
        if self._table is not None:
            check_table(self._table)

    def check(self, target: Target) -> Checked:
        """Check whether the target's version may be sent; see :data:`novasvc.rpc.checks.Check`."""
        known = self._topic(target).get()
        if isinstance(known, Deferred):
            return known.addCallback(self._judge, target)
        return self._judge(known, target)

    def check_known(self, target: Target) -> RPCVersionCapError | None:
        """Check with what is known now. Anything may be sent to a topic of which nothing is known."""
        return self._judge(self._topic(target).known, target)

    def answered(self, target: Target, error: BaseException | None) -> None:
        """Look again before the next message if a service has refused a version that the cap allowed.

        :param error: what a service has answered.
        """
        if isinstance(error, UnsupportedVersionError):
            self._topic(target).doubt()

    def _topic(self, target: Target) -> RefreshedValue[TopicVersions]:
        return self._versions.topic(target.topic, served=self._table is None)

    def _judge(self, known: TopicVersions | None, target: Target) -> RPCVersionCapError | None:
        if known is None:
            return None
        oldest, wanted = known.oldest, target.version or _UNVERSIONED
        caps = known.served.get(target.namespace, ()) if self._table is None else _at(self._table, oldest.version)
        if any(compatible(cap, wanted) for cap in caps):
            return None
        reason = f"that of the oldest service of {target.topic!r} that is up: {', '.join(oldest.hosts)}, with the "
        return RPCVersionCapError(wanted, " or ".join(caps) or "(none)", f"{reason}service version {oldest.version}")


def check_table(table: Mapping[int, str | Sequence[str]]) -> None:
    """Check a table of :class:`AutoCap`.

    :raises ValueError: it is empty, a key is no service version, or a value no version.
    """
    example = 'write service version: RPC version, such as {0: "1.0", 3: "1.2"}'
    if not table:
        raise ValueError(f"the table of version_cap is empty; {example}")
    for key, value in table.items():
        if type(key) is not int:
            raise ValueError(f"version_cap has the key {key!r}, which is no service version; {example}")
        versions = [value] if isinstance(value, str) else value
        if type(versions) not in {list, tuple} or not all(type(version) is str for version in versions):
            raise ValueError(f"version_cap has the value {value!r}, which is no version; {example}")
        for version in versions:
            parse_version(version)


def _at(table: Mapping[int, str | Sequence[str]], service_version: int) -> Sequence[str]:
    """Return the RPC versions of a service version: those of the highest key that is not above it."""
    keys = [key for key in table if key <= service_version]
    if not keys:
        return ()
    value = table[max(keys)]
    return (value,) if isinstance(value, str) else value


def choose(cap: AutoCap | str | None, target: Target, versions: Sequence[str]) -> Deferred[str]:
    """Choose the first of some versions that a cap allows; see :meth:`novasvc.rpc.Client.choose_version`."""
    for version in versions:
        parse_version(version)
    if not versions:
        raise ValueError('choose_version() takes versions, the best first, such as choose_version("1.4", "1.0")')
    if isinstance(cap, AutoCap):
        return Deferred.fromCoroutine(_choose(cap, target, versions))
    for version in versions:
        if compatible(cap, version):
            return succeed(version)
    return fail(RPCVersionCapError(versions[-1], str(cap)))


async def _choose(cap: AutoCap, target: Target, versions: Sequence[str]) -> str:
    error: object = None
    for version in versions:
        checked = cap.check(attrs.evolve(target, version=version))
        error = await checked if isinstance(checked, Deferred) else checked
        if error is None:
            return version
    assert isinstance(error, RPCVersionCapError)
    raise error
