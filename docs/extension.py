"""What the documentation site needs beside autodoc: zope interfaces, links of the checkout, references that exist."""

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from docutils.nodes import Node
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata
from zope.interface import Attribute
from zope.interface.interface import InterfaceClass, Method

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

INCLUDED = {
    "index": "README.md",
    "project/changelog": "CHANGELOG.md",
    "project/contributing": "CONTRIBUTING.md",
    "project/security": "SECURITY.md",
}
"""Pages of the site that begin with a page of the checkout."""

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!https?:|#)([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
_INTERFACE = re.compile(r"<InterfaceClass ([\w.]+)>")


class ZopeInterfaces(SphinxDirective):
    """Document each interface that a module defines. autodoc knows classes only, and a zope interface is none.

    The argument is the module's dotted name.
    """

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[Node]:
        """Return the nodes of the descriptions."""
        module = import_module(self.arguments[0])
        found = [
            value
            for value in vars(module).values()
            if isinstance(value, InterfaceClass) and value.__module__ == module.__name__
        ]
        return self.parse_text_to_nodes("\n".join(line for each in found for line in _described(each, module.__name__)))


def _described(interface: Any, module: str) -> Iterator[str]:
    """Yield the lines of an interface's description, in reStructuredText."""
    yield f".. py:module:: {module}\n   :no-index:\n"
    yield f".. py:class:: {module}.{interface.__name__}\n"
    bases = [base.__name__ for base in interface.__bases__ if base.__name__ != "Interface"]
    if bases:
        yield f"   Extends {', '.join(bases)}.\n"
    yield from _indented(interface.__doc__, 1)
    for name, element in interface.namesAndDescriptions():
        if isinstance(element, Method):
            yield f"   .. py:method:: {name}{element.getSignatureString()}\n"
        else:
            assert isinstance(element, Attribute)
            yield f"   .. py:attribute:: {name}\n"
        yield from _indented(element.__doc__, 2)


def _indented(text: str | None, levels: int) -> Iterator[str]:
    lines = inspect.cleandoc(text or "").splitlines()
    separate_source(lines)
    for line in [*lines, ""]:
        yield f"{'   ' * levels}{line}".rstrip()


def separate_source(lines: list[str]) -> None:
    """Put an empty line in front of the last line of a docstring, "Source: ...", which ends a list of fields."""
    for number, line in reversed(list(enumerate(lines))):
        if line.startswith("Source:") and number and lines[number - 1].strip():
            lines.insert(number, "")


def with_links_of_the_site(text: str, page: Path, docname: str) -> str:
    """Rewrite the relative links of a page, which lead to files of the checkout, into links of the site.

    A link to a file that the site does not have becomes plain text.

    :param text: the page, in Markdown.
    :param page: where it is in the checkout.
    :param docname: its name on the site.
    """
    pages = {(ROOT / source).resolve(): name for name, source in INCLUDED.items()}

    def rewrite(found: re.Match[str]) -> str:
        image, label, link = found.groups()
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve()
        if target in pages:
            target = DOCS / f"{pages[target]}.md"
        if DOCS not in target.parents or target.is_dir():
            return label
        up = "../" * docname.count("/")
        return f"{image}[{label}]({up}{target.relative_to(DOCS)}{'#' if anchor else ''}{anchor})"

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(rewrite, part) for part in parts)


def _read(app: Any, docname: str, source: list[str]) -> None:
    path, text = DOCS / f"{docname}.md", source[0]
    if docname in INCLUDED:
        path = ROOT / INCLUDED[docname]
        app.env.note_dependency(str(path))
        text = f"{path.read_text(encoding='utf-8')}\n{text.partition('-->')[2]}"
    source[0] = with_links_of_the_site(text, path, docname)


def _process_docstring(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    separate_source(lines)


def _process_signature(*given: Any) -> tuple[str | None, str | None]:
    # An annotation that is a zope interface is shown as its repr.
    return tuple(text and _INTERFACE.sub(r"~\1", text) for text in given[-2:])  # type: ignore[return-value]


def _resolve_missing(_app: Any, _env: Any, node: Any, contents: Any) -> Any:
    """Accept a reference to something that exists and is not documented here: an internal name, or another package's.

    It becomes plain text. Everything else is an error of the build.
    """
    if node.get("refdomain") != "py":
        return None
    target = _INTERFACE.sub(r"\1", node["reftarget"])
    scopes = [node.get("py:module") or "", node.get("py:class") or ""]
    prefixes = ("", f"{scopes[0]}.", f"{scopes[0]}.{scopes[1]}.", f"{scopes[1]}.")
    found = any(_exists(f"{prefix}{target}") for prefix in prefixes)
    return contents if found or _is_short_name(target) else None


def _is_short_name(name: str) -> bool:
    """Return whether a name without a module, as in ":raises BrokerError:", is one of ours."""
    ours = [module for path, module in sys.modules.items() if path.startswith("novasvc.")]
    return "." not in name and any(name in vars(module) for module in ours)


def _exists(path: str) -> bool:
    """Return whether a dotted name can be imported or found in what can."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:length]))
        except (ImportError, ValueError, TypeError):
            continue
        for name in parts[length:]:
            if isinstance(found, InterfaceClass) and name in found:
                return True
            fields = getattr(found, "__annotations__", {})
            if name in fields:  # a field without a default is no attribute of its class
                return True
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def setup(app: Any) -> ExtensionMetadata:
    """Register the directive and the handlers."""
    app.add_directive("zope-interfaces", ZopeInterfaces)
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _process_docstring)
    app.connect("autodoc-process-signature", _process_signature)
    app.connect("missing-reference", _resolve_missing)
    return {"parallel_read_safe": True}
