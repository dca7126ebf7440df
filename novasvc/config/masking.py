"""Mask secrets in values before they are shown or logged."""

import re
from collections.abc import Mapping, Sequence

MASK = "***"

# Greedy: everything up to the last "@" could belong to the password.
_PASSWORD = re.compile(r"^(?P<kept>.*?(?:://)?[^:/@]*):(?P<secret>.*)@", re.DOTALL)
# A user name may contain "@", as in Azure's databases, and so may what precedes the first password of a list of hosts.
# A "/" in it makes the URL invalid, which an error then shows. A third slash begins a path.
_SCHEME_PASSWORD = re.compile(r"^(?P<kept>.*?://(?!/)[^:]*):(?P<secret>.*)@", re.DOTALL)
# "scheme://user:password" without a host; ":5672" and "[::1]" are not passwords.
_NO_HOST = re.compile(r"^(?P<kept>.*?://[^:/@\[\]]*):(?!\d+(?:[/?,]|$))(?P<secret>[^/].*)$", re.DOTALL)
_NAMES = (
    r"pass(?:w|phrase|code|[_-]?key|[_-]?file|(?![a-z])(?![_-]through))|pwd|secret|token|credential|auth(?![a-z_-])|"
    r"(?:private|api|access|signing|encryption)[_-]?key"
)
_PARAMETER = re.compile(rf"(?P<kept>[?&;][^=&;]*(?:{_NAMES})[^=&;]*=)[^&;]*", re.IGNORECASE)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)


def masked_url(url: str) -> str:
    """Return the URL with its password, if it has one, replaced by ``***``.

    In doubt, as in a malformed URL, it masks too much rather than too little.

    :param url: "scheme://user:password@host/path?name=value", possibly malformed.
    """
    password = _SCHEME_PASSWORD if "://" in url else _PASSWORD
    text, found = password.subn(rf"\g<kept>:{MASK}@", url, count=1)
    if not found:
        text = _NO_HOST.sub(rf"\g<kept>:{MASK}", text)
    return _PARAMETER.sub(rf"\g<kept>{MASK}", text)


def masked(value: object, name: str = "") -> object:
    """Return a copy of a value in which everything that looks like a secret is replaced by ``***``.

    :param value: a value of a configuration file: text, number, list or table.
    :param name: name of the value; a name such as "password" masks the whole value.
    """
    if _SECRET_NAME.search(name):
        return MASK
    if isinstance(value, str):
        return masked_url(value) if "://" in value else value
    if isinstance(value, Mapping):
        return {key: masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [masked(item) for item in value]
    return value
