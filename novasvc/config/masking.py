"""Hide the secrets of a value before anybody reads it."""

import re
from collections.abc import Mapping, Sequence

MASK = "***"

# As much as could be a password is hidden: up to the last "@", whatever is in between.
_PASSWORD = re.compile(r"^(?P<kept>.*?(?:://)?[^:/@]*):(?P<secret>.*)@", re.DOTALL)
_SCHEME_PASSWORD = re.compile(r"^(?P<kept>.*?://[^:/@]*):(?P<secret>.*)@", re.DOTALL)
# "scheme://user:password" where the host was forgotten; ":5672" and "[::1]" are no passwords.
_NO_HOST = re.compile(r"^(?P<kept>.*?://[^:/@\[\]]*):(?!\d+(?:[/?,]|$))(?P<secret>[^/].*)$", re.DOTALL)
_PARAMETER = re.compile(r"(?P<kept>[?&;][^=&;]*(?:passw|pwd|secret|token)[^=&;]*=)[^&;]*", re.IGNORECASE)
_SECRET_NAME = re.compile(r"passw|pwd|secret|token|credential|private_?key|api_?key", re.IGNORECASE)


def masked_url(url: str) -> str:
    """Return the URL with its password, if it has one, replaced by ``***``.

    A text that is no URL is masked rather too much than too little.

    :param url: "scheme://user:password@host/path?name=value", or what somebody took for one.
    """
    password = _SCHEME_PASSWORD if "://" in url else _PASSWORD
    text, found = password.subn(rf"\g<kept>:{MASK}@", url, count=1)
    if not found:
        text = _NO_HOST.sub(rf"\g<kept>:{MASK}", text)
    return _PARAMETER.sub(rf"\g<kept>{MASK}", text)


def masked(value: object, name: str = "") -> object:
    """Return a copy of a value with whatever looks like a secret replaced by ``***``.

    :param value: as a configuration file may hold it: texts, numbers, lists, tables.
    :param name: what it is called; "password" and its like hide the whole value.
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
