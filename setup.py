"""How novasvc is packaged; the settings of the tools are in pyproject.toml."""

from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# A lower bound is the oldest release that the tests were run with.
REQUIRES = [
    # The six that the framework is built on.
    "Twisted[tls]>=25.5",  # the reactor, twistd and its plugins; [tls]: pyOpenSSL and idna
    "txAMQP>=0.8.2",  # AMQP: connection, channels, handshake
    "alchimia>=0.8.1",  # SQLAlchemy's engine on Twisted's threads
    "zope.interface>=7.1",  # the seams
    "pyOpenSSL>=24.3",  # TLS to the broker; the first that takes keys of cryptography
    "service-identity>=24.1",  # checks that a TLS server is the one we asked for
    "PasteDeploy>=3.1",  # loads applications of WSGI
    "klein>=24.8",  # routes of the HTTP services
    # What these leave open.
    "Jinja2>=3.1",  # the pages of the API
    "SQLAlchemy>=2.1",  # the schema and its queries
    "alembic>=1.16",  # migrations of the schema
    "attrs>=24.2",  # records, settings and errors
    "automat>=25.4",  # states of nodes, connections and workers
    "click>=8.2",  # the operators' command
    "rich>=13.9",  # its tables
    "psutil>=6.1",  # the host agent's facts, and what a process uses
    "prometheus_client>=0.21",  # the exposition of metrics
]

EXTRAS = {
    "postgresql": ["psycopg[binary]>=3.2"],
    "mysql": ["PyMySQL>=1.1"],  # MariaDB, too
    "title": ["setproctitle>=1.3"],  # what ps calls a supervisor and its workers
    "test": [
        "pytest>=8.3",
        "pytest-cov>=7.0",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",  # tests that wait for servers and processes, side by side
        "coverage>=7.10",  # the first that follows processes by itself
        "hypothesis>=6.120",
        # Two other readers of HTTP, which must not read otherwise what we accept.
        "h11>=0.16",
        "httptools>=0.9",
        "schemathesis>=4.0",  # asks the API what nobody thought of, by its description
        "selenium>=4.25",  # drives the browser that clicks through the page
        "psycopg[binary]>=3.2",  # PostgreSQL and MariaDB keep the contract of the registries
        "PyMySQL>=1.1",
        "trustme>=1.2",  # certificates for brokers with TLS, good ones and flawed ones
        "Django>=5.2",  # applications that WSGIService serves
        "Flask>=3.1",
        "build>=1.2",
        # An installation is tested with no index to ask, so what builds one has to be here.
        "setuptools>=77",
    ],
    "interop": [  # the peers of the tests that speak with the original
        "oslo.messaging>=18.0",
        "python-openstackclient>=10.5",  # manages our fleet
    ],
    "benchmark": [  # those that we are compared with
        "aio-pika>=9.5",
        "cotyledon>=2.2",
        "eventlet>=0.40",  # oslo.service forks on it; its wsgi server
        "gunicorn>=23.0",
        "oslo.messaging>=18.0",
        "oslo.service>=4.0",
        "pika>=1.3",
    ],
    "lint": [
        "ruff==0.17.6",  # exact: every rule is on, and a new release has new rules
        "mypy>=2.4",
        "mypy-zope>=1.0.17",
        "types-psutil>=6.1",
        "twine>=6.1",
        "check-manifest>=0.50",
        "import-linter>=2.16",
        "towncrier>=25.8",
    ],
}

setup(
    name="novasvc",
    version=run_path(str(HERE / "novasvc" / "_version.py"))["__version__"],
    description="Services that run on hosts: RPC, periodic tasks, liveness and supervision on Twisted",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # Without package_dir an editable installation is made of import hooks, and Twisted, which looks for
    # plugins in the directories of sys.path, does not find ours.
    package_dir={"": "."},
    packages=[*find_packages(include=["novasvc", "novasvc.*"]), "twisted.plugins"],
    package_data={
        "novasvc": ["py.typed"],
        "novasvc.api.page": ["templates/*", "static/*"],
        "novasvc.registry.sql": ["migrations/*.py", "migrations/*.mako", "migrations/versions/*.py"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["novasvc = novasvc.cli:main"]},
    # twistd reads a plugin's modification time and writes a cache beside it: not from within a zip file.
    zip_safe=False,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Framework :: Twisted",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
)
