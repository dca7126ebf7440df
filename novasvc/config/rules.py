"""Validation rules that involve several settings."""

from collections.abc import Collection, Iterator, Mapping

from novasvc.config.errors import SettingError
from novasvc.config.model import Settings


def rule_violations(settings: Settings, origins: Mapping[str, str], invalid: Collection[str]) -> Iterator[SettingError]:
    """Yield an error for each violated rule.

    :param origins: setting name -> origin; a setting that is missing here has its default.
    :param invalid: settings whose own value is invalid already; rules that involve them are skipped. "service" stands
        for the [[service]] tables.
    """
    if not {"service_down_time", "report_interval", "service"} & set(invalid):
        yield from _liveness(settings, origins)
    if not {"fence_after", "report_interval", "service"} & set(invalid):
        yield from _fence(settings, origins)
    for ours in ("rabbit_ssl_", "ssl_"):
        if not {f"{ours}cert_file", f"{ours}key_file"} & set(invalid):
            yield from _certificate(settings, origins, (f"{ours}cert_file", f"{ours}key_file"))
    if not {"enabled_apis", "enabled_ssl_apis", "ssl_cert_file"} & set(invalid):
        yield from _apis(settings, origins)
    if not {"api_listen", "api_token_file", "api_use_ssl", "insecure_http"} & set(invalid):
        yield from _exposure(settings, origins)
    if not {"rpc_operators", "rpc_callers_file", "transport_url"} & set(invalid):
        yield from _operators(settings, origins)
    if "service" not in invalid:
        yield from _duplicates(settings)
        if not {"db_allowed", "transport_url"} & set(invalid):
            yield from _conductors(settings, origins)


def _liveness(settings: Settings, origins: Mapping[str, str]) -> Iterator[SettingError]:
    """Require service_down_time > report_interval of every service; an interval of 0 disables heartbeats."""
    down = settings.service_down_time
    intervals = [service.report_interval for service in settings.services]
    late = {number: interval for number, interval in enumerate(intervals) if 0 < interval >= down}
    effect, remedy = "count as down", "set service_down_time to at least two intervals, or shorten report_interval"
    yield from _late_heartbeats(late, ("service_down_time", down), origins, effect, remedy)


def _fence(settings: Settings, origins: Mapping[str, str]) -> Iterator[SettingError]:
    """Require fence_after > report_interval > 0 of every service; a fence_after of 0 disables the fence."""
    limit = settings.fence_after
    intervals = [service.report_interval for service in settings.services]
    late = {number: interval for number, interval in enumerate(intervals) if limit and not 0 < interval < limit}
    effect = "be fenced"
    remedy = "set fence_after to several intervals, or to 0, and report_interval to more than 0"
    yield from _late_heartbeats(late, ("fence_after", limit), origins, effect, remedy)


def _late_heartbeats(
    late: Mapping[int, float], limit: tuple[str, float], origins: Mapping[str, str], effect: str, remedy: str
) -> Iterator[SettingError]:
    """Yield an error for each service with a wrong report_interval of its own, and one for all that inherit it.

    :param late: index of the service -> its interval.
    :param limit: name and value of the setting that the intervals contradict.
    :param effect: what would happen to the services, without reason.
    """
    name, seconds = limit
    inherited = None
    for number, interval in late.items():
        own = f"service[{number}].report_interval"
        when = "between two heartbeats" if interval else "because it sends no heartbeats"
        if own in origins:
            problem = f"the service would {effect} {when}: {name} is {seconds:g} s"
            yield SettingError("report_interval", f"{interval:g}", origins[own], problem, remedy)
        elif inherited is None:
            inherited = interval
    if inherited is not None:
        when = f"between two heartbeats, which are sent every {inherited:g} s" if inherited else "without heartbeats"
        problem = f"services would {effect} {when}"
        yield SettingError(name, f"{seconds:g}", origins.get(name, "default"), problem, remedy)


def _certificate(settings: Settings, origins: Mapping[str, str], names: Collection[str]) -> Iterator[SettingError]:
    given = {name: getattr(settings, name) for name in names}
    missing = [name for name, path in given.items() if path is None]
    if len(missing) == 1:
        other = next(name for name in given if name not in missing)
        problem = f"a certificate needs its key and vice versa, and {missing[0]} is not given"
        remedy = f"give {missing[0]} as well, or neither"
        yield SettingError(other, str(given[other]), origins.get(other, "default"), problem, remedy)


def _apis(settings: Settings, origins: Mapping[str, str]) -> Iterator[SettingError]:
    for name in ("enabled_apis", "enabled_ssl_apis"):
        if "api" in getattr(settings, name):
            problem, remedy = "api is the name of the built-in API", "rename the application"
            yield SettingError(name, "api", origins.get(name, "default"), problem, remedy)
    secure = settings.enabled_ssl_apis
    if secure and settings.ssl_cert_file is None:
        source = origins.get("enabled_ssl_apis", "default")
        problem, remedy = "TLS requires a certificate", "set ssl_cert_file and ssl_key_file"
        yield SettingError("enabled_ssl_apis", ",".join(secure), source, problem, remedy)


def _exposure(settings: Settings, origins: Mapping[str, str]) -> Iterator[SettingError]:
    if not settings.api or settings.api_is_local:
        return
    if settings.api_token_file is None:
        problem = "other hosts could use the API without a token"
        remedy = "set api_token_file (`novasvc token NAME` creates the file), or listen on 127.0.0.1"
    elif not settings.api_use_ssl and not settings.insecure_http:
        problem = "tokens would cross the network in clear text"
        remedy = "set api_use_ssl, ssl_cert_file and ssl_key_file; or insecure_http behind a proxy that terminates TLS"
    else:
        return
    yield SettingError("api_listen", settings.api_listen, origins.get("api_listen", "default"), problem, remedy)


def _operators(settings: Settings, origins: Mapping[str, str]) -> Iterator[SettingError]:
    names = settings.rpc_operators
    if names and settings.rpc_callers_file is None and settings.uses_broker:
        problem = "without the keys of callers nobody is known, and everybody could drain and restart the nodes"
        remedy = "set rpc_callers_file as well"
        yield SettingError("rpc_operators", ",".join(names), origins.get("rpc_operators", "default"), problem, remedy)


def _duplicates(settings: Settings) -> Iterator[SettingError]:
    # The services table has unique keys on (host, binary) and (host, topic).
    for what, other in (("binary", "another binary"), ("topic", "another topic")):
        seen: dict[tuple[str, str], int] = {}
        for number, service in enumerate(settings.services):
            key = (service.host, getattr(service, what))
            first = seen.setdefault(key, number)
            if first != number:
                yield SettingError(
                    f"service[{number}].{what}",
                    repr(key[1]),
                    "the [[service]] tables",
                    f"service[{first}] on host {key[0]!r} has the same {what}",
                    f"give it {other} or another host",
                )


def _conductors(settings: Settings, origins: Mapping[str, str]) -> Iterator[SettingError]:
    # The services of a process start one after the other, so a conductor must come before the services that need it.
    reachable = settings.uses_broker
    for number, service in enumerate(settings.services):
        if service.db_allowed:
            reachable = reachable or service.topic == "conductor"
            continue
        own = f"service[{number}].db_allowed"
        name = own if own in origins else "db_allowed"
        source = origins.get(name, "default")
        if service.topic == "conductor":
            problem, remedy = (
                "the conductor accesses the database for the other services",
                "set it to true for the conductor",
            )
            yield SettingError(name, "false", source, problem, remedy)
        elif not reachable:
            problem = f"no conductor starts before it in this process, and {settings.transport_url!r} reaches no others"
            remedy = 'put a [[service]] table with topic = "conductor" above it, or set transport_url to a broker'
            yield SettingError(name, "false", source, problem, remedy)
