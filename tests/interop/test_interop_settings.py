"""INI files as the real oslo.config reads them, and as we do: whatever is in them, the values are the same."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from oslo_config import cfg
from twisted.trial.unittest import SynchronousTestCase

from novasvc.config import load
from novasvc.config.ini import INIError, read_assignments
from novasvc.config.substitution import ReferenceChainError, Substitution, UndefinedOptionError
from novasvc.errors import ConfigurationError

NAMES = ("a", "b", "my_ip", "Big")
SECTIONS = ("DEFAULT", "default", "one", "One", "two_2")

blanks = st.sampled_from(["", " ", "  ", "\t"])
references = st.builds(
    str.format,
    st.sampled_from(["${}", "${{{}}}", "$${}", "\\${}", "x${}y", "$ {}", "${{{}"]),
    st.sampled_from([*NAMES, "one.a", "DEFAULT.b", "two_2.my_ip", "One.a", "nothing", "a.b", "1"]),
)
words = st.one_of(
    st.sampled_from(
        ["", "1", "true", '"', "'", '"x"', "'y", 'z"', "#", ";", "=", ":", "[", "]", "$", "$$", "\\", "%(a)s"]
    ),
    references,
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5),
)
values = st.builds(" ".join, st.lists(words, max_size=4))
quoted = st.builds(
    lambda quote, value, end: f"{quote}{value}{end}",
    *[st.sampled_from(['"', "'", ""]), values, st.sampled_from(['"', "'", ""])],
)
separators = st.builds(lambda before, sign, after: before + sign + after, blanks, st.sampled_from("=:"), blanks)
assignments = st.builds(lambda *parts: "".join(parts), st.sampled_from(NAMES), separators, quoted, blanks)
sections = st.builds(lambda name, end: f"[{name}]{end}", st.sampled_from(SECTIONS), blanks)
comments = st.builds(lambda sign, text: sign + text, st.sampled_from("#;"), values)
continuations = st.builds(lambda blank, text: blank + text, st.sampled_from([" ", "\t", "    "]), quoted)
good = st.one_of(assignments, assignments, sections, comments, continuations, blanks)
anything = st.one_of(good, good, good, values, st.sampled_from(["[", "[]", "[x", "[x] # y", "=x", " "]))


def files(lines: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Make texts of files that mostly begin with a section."""
    return st.builds(
        lambda head, rest, end: end.join([*head, *rest, ""]),
        st.sampled_from([["[DEFAULT]"], ["[DEFAULT]", "a = 1"], ["[one]"], []]),
        st.lists(lines, max_size=8),
        st.sampled_from(["\n", "\r\n"]),
    )


@contextlib.contextmanager
def written(text: str) -> Iterator[Path]:
    """Have a file with this text for a while."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "nova.conf")
        file.write_bytes(text.encode())
        yield file


def theirs(text: str) -> dict[str, dict[str, list[str]]] | None:
    """Return all values that oslo.config finds, by section and name; None if it refuses the file."""
    with written(text) as file:
        sections: dict[str, dict[str, list[str]]] = {}
        parser = cfg.ConfigParser(str(file), {})
        parser._add_normalized(sections)
        try:
            parser.parse()
        except cfg.ParseError:
            return None
        return {section: options for section, options in sections.items() if options}


def ours(text: str) -> dict[str, dict[str, list[str]]] | None:
    """Return all values that we find; None if we refuse the file."""
    sections: dict[str, dict[str, list[str]]] = {}
    with written(text) as file, file.open(encoding="utf-8-sig") as opened:
        try:
            for each in read_assignments(opened):
                sections.setdefault(each.section, {}).setdefault(each.name, []).append(each.value)
        except INIError:
            return None
    return sections


def substituted(text: str) -> dict[tuple[str, str], str | None]:
    """Return the values of a file in the end, as oslo.config has them; None is one that it refuses."""
    found = theirs(text) or {}
    conf = cfg.ConfigOpts()
    for section, options in found.items():
        for name in options:
            conf.register_opt(cfg.StrOpt(name, dest=name), group=None if section == "DEFAULT" else section)
    with written(text) as file:
        conf(["--config-file", str(file)], project="x", default_config_files=[], default_config_dirs=[])

        def value(section: str, name: str) -> str | None:
            try:
                read: str = conf[name] if section == "DEFAULT" else conf[section][name]
            except (cfg.Error, RecursionError):
                return None
            return read

        return {(section, name): value(section, name) for section, options in found.items() for name in options}


class INIFileTests(SynchronousTestCase):
    """Tests of files against oslo.config."""

    @given(files(anything))
    def test_lines(self, text: str) -> None:
        """The same files are refused, and in the others the same values are found, in the same order."""
        self.assertEqual(ours(text), theirs(text))

    @given(files(good))
    def test_names_in_values(self, text: str) -> None:
        """Names in values stand for the same, and the same values are refused."""
        found = ours(text)
        if found is None:
            return
        last = {(section, name): texts[-1] for section, options in found.items() for name, texts in options.items()}
        substitution = Substitution({}, last, {})

        def value(section: str, name: str) -> str | None:
            try:
                return substitution.text(section, name, last[section, name])
            except (UndefinedOptionError, ReferenceChainError):
                return None

        self.assertEqual({key: value(*key) for key in last}, substituted(text))

    @given(
        st.builds(" ".join, st.lists(words, max_size=2))
        | st.integers().map(str)
        | st.sampled_from(["On", "nO", "T", "1.5"]),
        st.sampled_from(['"', "'", ""]),
    )
    def test_types(self, text: str, quote: str) -> None:
        """A whole number and a boolean are read alike, and what is none is refused."""
        for name, kind, setting in (
            ("rpc_thread_pool_size", cfg.IntOpt(name="rpc_thread_pool_size", min=1), "rpc_concurrency"),
            ("periodic_enable", cfg.BoolOpt(name="periodic_enable"), "periodic_enable"),
            ("enabled_apis", cfg.ListOpt(name="enabled_apis"), "enabled_apis"),
        ):
            with written(f"[DEFAULT]\n{name} = {quote}{text}{quote}\na = 5\n") as file:
                found = self.found(lambda file=file, setting=setting: getattr(load([file], {}, {}).settings, setting))
                expected = self.expected(file, kind)
            if found is not None and expected is not None:
                self.assertEqual(list(found) if isinstance(found, tuple) else found, expected)
            elif name != "enabled_apis":  # where ours are names, and unique
                self.assertEqual(found, expected)

    def found(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except ConfigurationError:
            return None

    def expected(self, file: Path, option: cfg.Opt) -> Any:
        conf = cfg.ConfigOpts()
        conf.register_opts([option, cfg.StrOpt("a")])
        conf(["--config-file", str(file)], project="x", default_config_files=[], default_config_dirs=[])
        try:
            return conf[option.name]
        except cfg.Error:
            return None
