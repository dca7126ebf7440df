"""Where a broker is, and who we are there: the transport URL."""

from urllib.parse import quote, unquote, urlsplit

import attrs

_PORTS = {"amqp": 5672, "rabbit": 5672, "amqps": 5671}

BOOLEAN_WORDS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
"""What says yes and no in texts, in lower case."""

_ENCODE = 'a "@", ",", "/", "?", "#", "[" or "]" in the password must be percent-encoded'
_UNREADABLE = f"a host or port of it cannot be read; ports go to 65535 ({_ENCODE})"


@attrs.frozen
class Host:
    """One node of a broker.

    :param host: name or address.
    """

    host: str
    port: int
    username: str = "guest"
    password: str = attrs.field(default="guest", repr=False)


@attrs.frozen
class BrokerAddress:
    """The nodes of a broker, which are tried in turn.

    :param hosts: at least one.
    :param vhost: the virtual host.
    :param tls: whether to speak TLS.
    """

    hosts: tuple[Host, ...]
    vhost: str = "/"
    tls: bool = False

    @classmethod
    def parse(cls, url: str, *, tls: bool = False) -> "BrokerAddress":
        """Read a transport URL: ``amqp://user:password@host:5672,user:password@other:5672/vhost``.

        ``rabbit:`` is ``amqp:``, ``amqps:`` speaks TLS. A host without a user has the first one's, or guest. All after
        the hosts and a slash is the name of the virtual host, percent-encoded; without one it is "/". A query may be
        ``?ssl=1`` or ``?ssl=0``, which oslo.messaging has as well.

        :param tls: speak TLS, whatever the scheme, unless the query says otherwise.
        :raises ValueError: it is none, and why; there is no secret in the text.
        """
        try:
            parts = urlsplit(url)
        except ValueError:  # whose text has the password
            raise ValueError(_UNREADABLE) from None
        if parts.scheme not in _PORTS:
            raise ValueError(f"the scheme is none of {', '.join(f'{name}://' for name in _PORTS)}")
        if parts.fragment:
            raise ValueError(f"it has a fragment, which means nothing here ({_ENCODE})")
        if "@" in parts.path:
            raise ValueError(_UNREADABLE)  # the path would be a part of the password
        asked = _ssl(parts.query)
        if asked is False and parts.scheme == "amqps":
            raise ValueError("amqps:// speaks TLS, and ssl=0 in its query forbids that")
        tls = parts.scheme == "amqps" or (tls if asked is None else asked)
        default = _PORTS["amqps"] if tls else _PORTS["amqp"]
        hosts: list[Host] = []
        for text in parts.netloc.split(","):
            hosts.append(_host(text, default, hosts[0] if hosts else None))
        path = parts.path.removeprefix("/")
        return cls(tuple(hosts), unquote(path) or "/", tls)

    def shown(self, host: Host | None = None) -> str:
        """Return the URL with its passwords masked.

        :param host: only this one; all by default.
        """
        hosts = self.hosts if host is None else (host,)
        scheme = "amqps" if self.tls else "amqp"
        where = ",".join(f"{quote(one.username)}:***@{_bracketed(one.host)}:{one.port}" for one in hosts)
        return f"{scheme}://{where}/{quote(self.vhost, '')}"


def _ssl(query: str) -> bool | None:
    """Return what the query of a URL says about TLS; None if there is no query."""
    if not query:
        return None
    name, _, word = query.partition("=")
    if name != "ssl":
        raise ValueError(f"it has a query other than ssl=1 or ssl=0; all else are settings of their own ({_ENCODE})")
    if word.lower() not in BOOLEAN_WORDS:
        raise ValueError(f"ssl in its query is neither 1 nor 0 ({_ENCODE})")
    return BOOLEAN_WORDS[word.lower()]


def _host(text: str, default_port: int, before: Host | None) -> Host:
    login, _, place = text.rpartition("@")
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(_UNREADABLE) from None
    if port == 0:
        raise ValueError("port 0 is none to connect to")
    if not host:
        raise ValueError("it names no host")
    username, colon, password = login.partition(":")
    if not login:
        username, password = (before.username, before.password) if before else ("guest", "guest")
        return Host(host, port or default_port, username, password)
    return Host(host, port or default_port, unquote(username), unquote(password) if colon else "")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
