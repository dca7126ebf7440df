"""Parse transport URLs: broker nodes, credentials, virtual host and TLS."""

from urllib.parse import quote, unquote, urlsplit

import attrs

_PORTS = {"amqp": 5672, "rabbit": 5672, "amqps": 5671}

BOOLEAN_WORDS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
"""Lower-case words for booleans in text."""

_ENCODE = 'a "@", ",", "/", "?", "#", "[" or "]" in the password must be percent-encoded'
_UNREADABLE = f"invalid host or port; the highest port is 65535 ({_ENCODE})"


@attrs.frozen
class Host:
    """One node of the broker, with the credentials to use there.

    :param host: host name or IP address.
    """

    host: str
    port: int
    username: str = "guest"
    password: str = attrs.field(default="guest", repr=False)


@attrs.frozen
class BrokerAddress:
    """A parsed transport URL.

    :param hosts: the broker's nodes, at least one; clients try them in turn.
    :param vhost: virtual host.
    :param tls: whether to use TLS.
    """

    hosts: tuple[Host, ...]
    vhost: str = "/"
    tls: bool = False

    @classmethod
    def parse(cls, url: str, *, tls: bool = False) -> "BrokerAddress":
        """Parse a transport URL: ``amqp://user:password@host:5672,user:password@other:5672/vhost``.

        ``rabbit:`` is an alias of ``amqp:``; ``amqps:`` uses TLS. A host without credentials uses those of the first
        host, or guest. The rest after the slash is the percent-encoded virtual host, "/" by default. As in
        oslo.messaging, the query may be ``?ssl=1`` or ``?ssl=0``.

        :param tls: use TLS even if the scheme does not say so; the query overrides it.
        :raises ValueError: the URL is invalid; the text gives the reason and contains no secret.
        """
        try:
            parts = urlsplit(url)
        except ValueError:  # its text contains the password
            raise ValueError(_UNREADABLE) from None
        if parts.scheme not in _PORTS:
            raise ValueError(f"the scheme is not one of {', '.join(f'{name}://' for name in _PORTS)}")
        if parts.fragment:
            raise ValueError(f"a fragment is not allowed ({_ENCODE})")
        if "@" in parts.path:
            raise ValueError(_UNREADABLE)  # a "/" in the password made the rest of the password the path
        asked = _ssl(parts.query)
        if asked is False and parts.scheme == "amqps":
            raise ValueError("amqps:// contradicts ssl=0 in the query")
        tls = parts.scheme == "amqps" or (tls if asked is None else asked)
        default = _PORTS["amqps"] if tls else _PORTS["amqp"]
        hosts: list[Host] = []
        for text in parts.netloc.split(","):
            hosts.append(_host(text, default, hosts[0] if hosts else None))
        path = parts.path.removeprefix("/")
        return cls(tuple(hosts), unquote(path) or "/", tls)

    def shown(self, host: Host | None = None) -> str:
        """Return the URL with its passwords masked.

        :param host: the only node to show; all by default.
        """
        hosts = self.hosts if host is None else (host,)
        scheme = "amqps" if self.tls else "amqp"
        where = ",".join(f"{quote(one.username)}:***@{_bracketed(one.host)}:{one.port}" for one in hosts)
        return f"{scheme}://{where}/{quote(self.vhost, '')}"


def _ssl(query: str) -> bool | None:
    """Parse the query of a URL: whether to use TLS; None if there is no query."""
    if not query:
        return None
    name, _, word = query.partition("=")
    if name != "ssl":
        raise ValueError(
            f"a query other than ssl=1 or ssl=0 is not supported; use the rabbit_* settings instead ({_ENCODE})"
        )
    if word.lower() not in BOOLEAN_WORDS:
        raise ValueError(f"ssl in the query is neither 1 nor 0 ({_ENCODE})")
    return BOOLEAN_WORDS[word.lower()]


def _host(text: str, default_port: int, before: Host | None) -> Host:
    login, _, place = text.rpartition("@")
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(_UNREADABLE) from None
    if port == 0:
        raise ValueError("port 0 is invalid")
    if not host:
        raise ValueError("the host is missing")
    username, colon, password = login.partition(":")
    if not login:
        username, password = (before.username, before.password) if before else ("guest", "guest")
        return Host(host, port or default_port, username, password)
    return Host(host, port or default_port, unquote(username), unquote(password) if colon else "")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
