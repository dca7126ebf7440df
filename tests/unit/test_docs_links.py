"""Tests for what the documentation refers to: links, anchors, paths, packages, versions."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

_ROOT = Path(__file__).parents[2]
_PAGES = sorted([*_ROOT.glob("*.md"), *_ROOT.glob("docs/**/*.md"), *_ROOT.glob("examples/**/*.md")])
_LINK = re.compile(r"\]\(((?!https?:)[^)\s]+)\)")
_PATH = re.compile(r"`((?:docs|examples|novasvc|tap|tests|twisted)/[\w./-]+)`")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_TERMS = 18
"""Terms of our own that a reader would have to learn: fewer than this."""


def text_of(page: Path) -> str:
    """Return a page without its blocks of code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def found(pattern: re.Pattern[str]) -> Iterator[tuple[Path, str]]:
    """Yield each match of a pattern in the pages, with its page."""
    for page in _PAGES:
        if page.name != "CHANGELOG.md":  # past releases name the files that they had
            yield from ((page, match) for match in pattern.findall(text_of(page)))


class DocumentationTests(SynchronousTestCase):
    """README.md, CONTRIBUTING.md, SECURITY.md, docs/ and the READMEs of examples/."""

    def test_links(self) -> None:
        """Each relative link leads to a file, and each anchor to a heading of it."""
        links = list(found(_LINK))
        self.assertTrue(links)
        for page, link in links:
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            self.assertTrue(target.exists(), f"{page.name}: {link}")
            if anchor:
                self.assertIn(anchor, anchors(target), f"{page.name}: {link}")

    def test_paths(self) -> None:
        """Each path of the checkout that a page names exists."""
        paths = list(found(_PATH))
        self.assertTrue(paths)
        for page, path in paths:
            self.assertTrue((_ROOT / path).exists(), f"{page.name}: {path}")

    def test_packages(self) -> None:
        """CONTRIBUTING.md lists each package of novasvc."""
        table = (_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        listed = set(re.findall(r"^\| `novasvc/(\w+)` \|", table, re.MULTILINE))
        packages = {path.parent.name for path in (_ROOT / "novasvc").glob("*/__init__.py")}
        self.assertEqual(listed, packages)

    def test_glossary(self) -> None:
        """The glossary has few terms, in alphabetical order."""
        page = (_ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
        terms = re.findall(r"^\| ([a-z ]+) \|", page, re.MULTILINE)[1:]
        self.assertEqual(terms, sorted(terms))
        self.assertLess(len(terms), _TERMS)

    def test_pythons(self) -> None:
        """README.md names the Pythons that the package's metadata names, and no others."""
        metadata = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        pythons = [name.rpartition(" ")[2] for name in metadata["classifiers"] if "Python :: 3" in name]
        (row,) = re.findall(r"^\| Python \| (.*) \|$", (_ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
        self.assertEqual(re.findall(r"3\.\d+", row), pythons)
        self.assertEqual(metadata["requires-python"], f">={pythons[0]}")
