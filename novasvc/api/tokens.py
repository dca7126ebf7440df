"""The file of tokens: who may ask, and for what."""

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import attrs

from novasvc.errors import SettingError

READ = "read"
ADMIN = "admin"
SCOPES = (READ, ADMIN)
"""What a caller may do: look at everything; or change things, too."""

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._@-]{1,64})\s+(?P<scope>[a-z]+)\s+(?P<token>[\x21-\x7e]+)")
SHORTEST = 16
"""Characters of a token: fewer can be guessed."""
_MOST = 1000
"""Tokens in a file: each is compared at every request."""
_LARGEST = 1 << 20
"""Characters of a file that are read."""
_HOW = "`novasvc token NAME --scope read` makes it, and a token in it"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@attrs.frozen
class Token:
    """One line of the file.

    :param name: whose it is, for the log.
    :param scope: "read" or "admin".
    :param digest: SHA-256 of the token. The token itself is not kept.
    """

    name: str
    scope: str
    digest: bytes = attrs.field(repr=False)


def digest(token: str) -> bytes:
    """Return what a token is known by."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def mark(token: Token) -> str:
    """Return what a session is known by to be of this token: a part of its digest."""
    return token.digest.hex()[:16]


def find(tokens: Sequence[Token], given: str) -> Token | None:
    """Return the token that was given, or None; how long that takes says nothing about any token."""
    wanted, found = digest(given), None
    for token in tokens:
        if hmac.compare_digest(token.digest, wanted):
            found = token
    return found


def read_tokens(path: Path) -> list[Token]:
    """Read the file: a line is "name scope token"; empty lines and those that begin with "#" are nothing.

    :raises SettingError: it cannot be read, others may read it, or a line is none. No token is in the text.
    """
    tokens: dict[str, Token] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        token = _token(path, number, line.strip())
        if tokens.setdefault(token.name, token) is not token:
            problem = f"line {number} has a name that a line before has"
            raise _refused(path, problem, "give each token a name of its own")
    if not tokens:
        raise _refused(path, "it has no token, so nobody could ask anything", _HOW)
    if len(tokens) > _MOST:
        raise _refused(path, f"it has {len(tokens)} tokens", f"give at most {_MOST}")
    return [*tokens.values()]


def add_token(path: Path, name: str, scope: str, token: str) -> None:
    """Add a line to the file, which is made if it is not there, with mode 0600.

    :raises SettingError: the file has an error, or the name already; or it cannot be written.
    """
    line = f"{name} {scope} {token}"
    if _LINE.fullmatch(line) is None:
        remedy = "give 1 to 64 letters, digits and any of . _ @ -"
        raise _refused(path, f"{name[:100]!r} cannot be the name of a token", remedy)
    if path.exists() and path.stat().st_size and any(known.name == name for known in read_tokens(path)):
        raise _refused(path, f"it has a token called {name!r}", "give another name, or take that line out first")
    try:
        whole = not path.exists() or path.read_bytes()[-1:] in {b"", b"\n"}
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(line if whole else f"\n{line}")
            file.write("\n")
    except OSError as error:
        problem = f"it cannot be written: {error.strerror}"
        raise _refused(path, problem, "give a file in a directory of yours") from error


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & _OTHERS:
                problem = f"its mode is {mode:04o}, so others than its owner may read it"
                raise _refused(path, problem, f"chmod 600 {path}")
            return file.read(_LARGEST).splitlines()
    except PermissionError as error:
        remedy = f"make it a file of the user that this runs as, uid {os.getuid()}, with mode 0600"
        raise _refused(path, f"it cannot be read: {error.strerror}", remedy) from error
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else "it is no text in UTF-8"
        raise _refused(path, f"it cannot be read: {why}", _HOW) from error


def _token(path: Path, number: int, line: str) -> Token:
    match = _LINE.fullmatch(line)
    if match is None or match["scope"] not in SCOPES:
        remedy = f'line {number} is to be "name scope token", with scope read or admin'
        raise _refused(path, "it has a line that is none of it", remedy)
    if len(match["token"]) < SHORTEST:
        problem = f"the token of line {number} can be guessed"
        raise _refused(path, problem, f"give at least {SHORTEST} characters; {_HOW}")
    return Token(match["name"], match["scope"], digest(match["token"]))


def _refused(path: Path, problem: str, remedy: str) -> SettingError:
    return SettingError("api_token_file", str(path), "the configuration", problem, remedy)
