"""Tests for installations from wheel, sdist and checkout, each with its own Twisted."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import ClassVar

import pytest
from packaging.requirements import Requirement
from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "twisted/plugins/novasvc_plugin.py"
LIMIT = 120.0
"""Seconds for one command; the slowest takes five on two cores."""

# What a user's own directory has, and no package may.
LITTER = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "_trial_temp*")

IMPORT_ALL = """
import importlib, pkgutil, sys, novasvc
assert "twisted.internet.reactor" not in sys.modules, "novasvc"
names = [m.name for m in pkgutil.walk_packages(novasvc.__path__, "novasvc.")]
# Klein, which the modules of the API are made with, imports the reactor: the package api is imported where one runs.
for name in sorted(names, key=lambda name: name.startswith("novasvc.api")):
    if not name.endswith((".__main__", ".pytest_plugin")):  # which pytest imports, and which imports pytest
        importlib.import_module(name)
        assert name.startswith("novasvc.api") or "twisted.internet.reactor" not in sys.modules, name
print(len(names))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the checkout, with nothing of this process's Python in its environment.

    :return: what it printed, both streams.
    :raises AssertionError: it ended with another status than 0.
    """
    ours = ("PYTHON", "COV", "NOVASVC", "PIP", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, "HOME": str(cwd), "PIP_CONFIG_FILE": os.devnull},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


def dependencies() -> dict[str, Distribution]:
    """Return the installed distributions that novasvc requires, directly and indirectly."""
    found: dict[str, Distribution] = {}
    # setuptools: an sdist is built where it is installed, and there is no index to ask.
    wanted = [Requirement("setuptools"), *map(Requirement, distribution("novasvc").requires or [])]
    wanted = [requirement for requirement in wanted if not requirement.marker or requirement.marker.evaluate()]
    while wanted:
        requirement = wanted.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found and not requirement.extras:
            continue
        found[name] = distribution(requirement.name)
        for line in found[name].requires or ():
            further = Requirement(line)
            chosen = ("", *requirement.extras)
            if not further.marker or any(further.marker.evaluate({"extra": extra}) for extra in chosen):
                wanted.append(further)
    return found


class Installation:
    """A virtual environment with all that novasvc needs in it, but not novasvc.

    Links, in the one directory where pip would have put the files, so that our plugin lies beside Twisted's own. No
    test writes into one of these files: Python and pip write a file beside the old one and rename it.
    """

    def __init__(self, directory: Path) -> None:
        self.elsewhere = directory / "elsewhere"
        self.elsewhere.mkdir(parents=True)
        self.environment = directory / "environment"
        venv.EnvBuilder(with_pip=False, symlinks=True).create(self.environment)
        self.python = self.environment / "bin" / "python"
        self.site = next(self.environment.glob("lib/python*/site-packages"))
        for needed in dependencies().values():
            self._link(needed)
        # What pip would have written for Twisted's entry point.
        self.twistd = self.environment / "bin" / "twistd"
        self.twistd.write_text(
            f"#!{self.python}\nimport sys\nfrom twisted.scripts.twistd import run\nsys.exit(run())\n"
        )
        self.twistd.chmod(0o755)

    def _link(self, needed: Distribution) -> None:
        for file in needed.files or ():
            if ".." in file.parts or file.name == "dropin.cache":
                continue
            target = self.site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            source = Path(str(file.locate()))
            if not source.exists():  # a record may name bytecode that was never written
                continue
            try:
                os.link(source, target)
            except OSError:  # on another file system
                shutil.copy2(source, target)

    def pip(self, *arguments: str | Path) -> str:
        """Run pip of the tests' environment on this one, without an index."""
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python)
        return run(*pip, *arguments, cwd=self.elsewhere)

    def install(self, *what: str | Path) -> None:
        """Install novasvc without its dependencies, which are there."""
        self.pip("install", "--no-deps", "--no-index", "--no-build-isolation", *what)
        self.pip("check")

    def help(self) -> str:
        """Return the output of `twistd --help`."""
        return run(self.twistd, "--help", cwd=self.elsewhere)

    def evaluate(self, code: str) -> str:
        """Run Python code in isolated mode; return its output."""
        return run(self.python, "-I", "-c", code, cwd=self.elsewhere).strip()

    def twisted_files(self) -> dict[str, str]:
        """Return the digest of each file of Twisted, except those that running it writes."""
        package = self.site / "twisted"
        return {
            str(path.relative_to(self.site)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in package.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.name != "dropin.cache"
        }


class PackagingTests(SynchronousTestCase):
    """Tests that share one build of the checkout."""

    folder: ClassVar[Path]
    source: ClassVar[Path]
    sdist: ClassVar[Path]
    wheel: ClassVar[Path]

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = Path(tempfile.mkdtemp(prefix="novasvc-packaging-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.source = cls.folder / "source"
        shutil.copytree(ROOT, cls.source, ignore=LITTER)
        # A checkout that twistd ran in has a plugin cache.
        (cls.source / "twisted" / "plugins" / "dropin.cache").write_bytes(b"a cache")
        # The wheel is built from the sdist, as an index's users would.
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", cls.folder, cls.source, cwd=cls.folder)
        (cls.sdist,) = cls.folder.glob("*.tar.gz")
        (cls.wheel,) = cls.folder.glob("*.whl")

    def installation(self) -> Installation:
        """Return a new environment in which twistd has run, so that a plugin cache exists."""
        directory = Path(tempfile.mkdtemp(prefix="installation-", dir=self.folder))
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        installation = Installation(directory)
        self.assertNotIn("novasvc", installation.help())
        self.assertTrue((installation.site / "twisted" / "plugins" / "dropin.cache").exists())
        return installation

    def comes_and_goes(self, *what: str | Path) -> Installation:
        """Assert that twistd has the plugin after installing, and that nothing remains after uninstalling."""
        installation = self.installation()
        before = installation.twisted_files()
        installation.install(*what)
        self.assertRegex(installation.help(), r"(?m)^ +novasvc +\S")
        self.assertIn("--config", run(installation.twistd, "novasvc", "--help", cwd=installation.elsewhere))
        during = installation.twisted_files()
        self.assertEqual({name: during[name] for name in before}, before)
        self.assertLessEqual(set(during) - set(before), {PLUGIN})
        where = installation.evaluate("import novasvc; print(novasvc.__file__)")
        program = run(installation.environment / "bin" / "novasvc", "--version", cwd=installation.elsewhere)
        installation.pip("uninstall", "--yes", "novasvc")
        self.assertEqual(installation.twisted_files(), before)
        remaining = installation.help()
        self.assertNotIn("novasvc", remaining)
        self.assertNotIn("Traceback", remaining)
        self.assertRegex(remaining, r"(?m)^ +web +\S")
        self.assertEqual(list(installation.site.glob("*novasvc*")), [])
        self.assertIn(self.version(), program)
        self.where = Path(where)
        return installation

    def version(self) -> str:
        """Return the version in the wheel's name."""
        return self.wheel.name.split("-")[1]

    @pytest.mark.timeout(LIMIT)
    def test_wheel_installation(self) -> None:
        """A wheel installs twistd's plugin, and uninstalls it."""
        installation = self.comes_and_goes(self.wheel)
        self.assertIn(installation.site, self.where.parents)

    @pytest.mark.long
    @pytest.mark.timeout(LIMIT)
    def test_sdist_installation(self) -> None:
        """An sdist installs twistd's plugin, and uninstalls it."""
        installation = self.comes_and_goes(self.sdist)
        self.assertIn(installation.site, self.where.parents)

    @pytest.mark.long
    @pytest.mark.timeout(LIMIT)
    def test_editable_installation(self) -> None:
        """An editable installation makes twistd find the plugin in the checkout, and can be uninstalled."""
        checkout = Path(tempfile.mkdtemp(prefix="checkout-", dir=self.folder)) / "novasvc"
        shutil.copytree(self.source, checkout, ignore=LITTER)
        (checkout / "twisted" / "plugins" / "dropin.cache").unlink()
        self.comes_and_goes("--editable", checkout)
        self.assertIn(checkout, self.where.parents)
        self.assertTrue((checkout / PLUGIN).exists())

    @pytest.mark.long
    @pytest.mark.timeout(LIMIT)
    def test_imports(self) -> None:
        """With the declared dependencies only, every module can be imported, and installs no reactor."""
        installation = self.installation()
        installation.install(self.wheel)
        self.assertGreater(int(installation.evaluate(IMPORT_ALL)), 20)

    @pytest.mark.long
    @pytest.mark.timeout(LIMIT)
    def test_new_project(self) -> None:
        """A project that an installation from a wheel creates is tested with this installation, and passes."""
        installation = self.installation()
        installation.install(self.wheel)
        run(installation.environment / "bin" / "novasvc", "new", "shop", cwd=installation.elsewhere)
        project = installation.elsewhere / "shop"
        self.assertEqual((project / ".novasvc-python").read_text().strip(), str(installation.python))
        self.assertIn("PASSED (successes=3)", run(project / "tests" / "run", cwd=project))

    def test_wheel_contents(self) -> None:
        """A wheel contains the package with its data and, under twisted/, only our plugin."""
        with zipfile.ZipFile(self.wheel) as wheel:
            names = {name for name in wheel.namelist() if not name.endswith("/")}
            metadata = wheel.read(f"novasvc-{self.version()}.dist-info/METADATA").decode()
        package = {
            str(path.relative_to(self.source))
            for path in (self.source / "novasvc").rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        self.assertIn("novasvc/py.typed", package)
        self.assertIn("novasvc/registry/sql/migrations/env.py", package)
        self.assertEqual({name for name in names if ".dist-info/" not in name}, package | {PLUGIN})
        self.assertIn("\nLicense-Expression: MIT\n", metadata)
        self.assertIn("\nRequires-Python: >=3.11\n", metadata)

    def test_sdist_contents(self) -> None:
        """An sdist contains sources and tests, and no plugin cache."""
        with tarfile.open(self.sdist) as sdist:
            members = {member.name.partition("/")[2]: member for member in sdist.getmembers() if member.isfile()}
        twisted = {name for name in members if name.startswith("twisted/")}
        self.assertEqual(twisted, {PLUGIN})
        for name in (
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "LICENSE",
            "README.md",
            "SECURITY.md",
            "pyproject.toml",
            "setup.py",
            "tests/run",
        ):
            self.assertIn(name, members)
        self.assertTrue(members["tests/run"].mode & 0o100)
        self.assertEqual([name for name in members if name.endswith((".pyc", "dropin.cache"))], [])

    def test_nothing_makes_twisted_a_package(self) -> None:
        """There is no __init__.py under twisted/, which would hide Twisted's own plugins."""
        self.assertEqual(list((ROOT / "twisted").rglob("__init__.py*")), [])
