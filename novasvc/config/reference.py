"""Write ``docs/settings.md`` from the settings: ``python -m novasvc.config.reference > docs/settings.md``."""

import sys
from collections.abc import Iterator

from novasvc.config.definition import SettingDefinition
from novasvc.config.environment import variable
from novasvc.config.model import DEFINITIONS
from novasvc.config.sections.services import INHERITED
from novasvc.config.types import BOOLEAN

_HEAD = """\
# Settings

Every setting has a default. It may be given in a TOML file, in an INI file with Nova's names, in a
variable of the environment, and as an option of `twistd novasvc`. Where it is given more than once,
the later of these wins:

1. the default
2. TOML files, in the order in which they are named
3. INI files, in the order in which they are named
4. variables
5. options

`novasvc config show` prints every value and where it came from. A node that is given something wrong does not start,
and says all of it. `novasvc config check FILE...` says it before, and starts nothing: besides wrong values, and in the
same run, it finds managers that cannot be imported, options that their constructors do not take, certificates, tokens
and applications that cannot be read, drivers that are not installed, directories that cannot be written to, and
addresses that are taken. What goes by a value that is wrong is checked when that is mended, and so is everything if a
file cannot be read. Where the node is already running, `--running` skips the check for ports in use; a supervisor that
runs is found without that.

Both commands take files as arguments or by `--config FILE`. They read the variables, too, as
`twistd novasvc --config FILE` does: run them as the user that the node has, with the same variables and the same
`PYTHONPATH`.

## Files

Files are named by `--config FILE`, once for each, or else by the variable `NOVASVC_CONFIG`, with
colons between them. `.toml` is TOML; `.ini` and `.conf` are INI. A relative path, here and in values,
is taken from the working directory.

```toml
# /etc/novasvc/novasvc.toml
report_interval = 5
service_down_time = 30
database_url = "postgresql://novasvc@db.example.org/novasvc"
```

```ini
# /etc/novasvc/novasvc.conf: the section DEFAULT, and the name of the database as Nova has it
[DEFAULT]
report_interval = 5
compute_manager = example.compute.ComputeManager
[database]
connection = postgresql://novasvc@db.example.org/novasvc
```

In TOML a number is a number and a boolean is `true` or `false`. INI files, variables and options have
texts: there `yes`, `on`, `1` and `no`, `off`, `0` are booleans, too, and `none` unsets what can be
without a value. An option for a boolean takes no value: `--no-migrate`. A text with quotes inside its quotes,
such as `NOVASVC_HOST='"h1"'`, is an error: they would be a part of the value.

## INI files

An INI file may be shared with Nova. It is read as oslo.config reads it:

- Quotes around a value are removed: `state_path = "/srv/nova"`.
- `$name` and `${name}` in a value stand for the value of another option, of the same section or else of `DEFAULT`, and
  `${section.name}` for one of another section. An option that novasvc knows has the value that it has in the end,
  whichever source that is from, or its default; any other has the value that the files give it. `$$` is a dollar
  sign. A name that no option has is an error.
- The last of several values of an option counts. Lists have commas: `enabled_apis = osapi_compute, metadata`.
- A section may come more than once, and in any case but for `DEFAULT`.
- A line that begins with a blank continues the value above it. `#` and `;` begin a comment at the begin of a line only:
  `state_path = "/srv/nova"  # the share` sets a path with quotes and a comment in it. A warning names such a value.
- A byte order mark at the begin of the file is ignored; oslo.config rejects it.

Options that are not settings of novasvc are ignored, because they are Nova's, and one warning lists them: at the start,
and in `novasvc config check`. A name that looks much like that of a setting, or of a section as `[defaults]` does, is
followed by that one: check these for typos. In TOML files, variables and options such a name is an error.

Every name in `DEFAULT` that ends in `_manager`, `_listen`, `_listen_port` or `_workers` is taken for a setting of the
topic or API in front of that, because a program may serve topics and APIs that no setting names. So Nova's `ec2_listen`
is read, and has no effect. One with a wrong value is ignored, with a warning, unless a service or an API in the
settings has that name; then it is an error.

## Secrets

A URL may hold a password. It is shown as `***` wherever novasvc writes it: in the log, in errors, in
`novasvc config show`. To keep it out of the environment, too, put the value into a file and name the
file in a variable that ends with `_FILE`: `NOVASVC_DATABASE_URL_FILE=/run/secrets/database_url`.
Every variable has such a twin; to give both is an error.

## Settings
"""

_SERVICES = """\
## Managers

`<topic>_manager`, such as `compute_manager` or `NOVASVC_COMPUTE_MANAGER`, names the class that serves
a topic: `package.module.Class` or `package.module:Class`.

## Services

A process runs one service: `binary`, `topic` and `manager` say which one. To run more, or to give a
manager something, write a `[[service]]` table for each; then those three belong into the tables.
The tables of a later file replace those of an earlier one.

```toml
[[service]]
binary = "novasvc-agent"

[[service]]
binary = "nova-compute"
manager = "example.compute.ComputeManager"
report_interval = 5
[service.options]           # keyword arguments of the manager's constructor, beside host
disks = ["sda", "sdb"]
```

| in a table | default |
|---|---|
| `binary` | `novasvc-` and the topic; one of the two must be given |
| `topic` | what follows `novasvc-` or `nova-` in `binary` |
| `manager` | `<topic>_manager`; the topics `agent` and `conductor` have one of their own |
| `workers` | none: it shares the processes of the other services |
| `options` | none |
| {inherited} | the setting of the same name |

No two services may have the same host and binary, or the same host and topic. `service = []` is no service:
with `api = true` or `enabled_apis`, a process that serves these alone.

## APIs

Applications of WSGI are served as `enabled_apis` and `enabled_ssl_apis` say; [http.md](http.md) tells how. For each,
say `osapi_compute`:

| setting | default |
|---|---|
| `osapi_compute_listen` | 127.0.0.1 |
| `osapi_compute_listen_port` | 8774 for `osapi_compute`, 8775 for `metadata`, else 0, a free one |
| `osapi_compute_workers` | none: one for each processor, where there are supervised processes at all |
| `osapi_compute_manager` | none; its hooks are called around the start and the stop |

## Rules

- `service_down_time` must be more than the `report_interval` of each service that runs here.
- A certificate needs its key: `ssl_cert_file` and `ssl_key_file`, `rabbit_ssl_cert_file` and `rabbit_ssl_key_file`.
- `enabled_ssl_apis` needs a certificate; `api` is no name for one of the `enabled_apis`.
- A service with `db_allowed = false` needs a conductor: on `memory:`, a `[[service]]` table with
  `topic = "conductor"` above its own. The conductor itself needs the database.
- A name that does not exist is an error, but for INI files. Variables that Kubernetes makes for a
  Service named `novasvc` (`NOVASVC_PORT` and its like) are passed over.
"""


def reference() -> str:
    """Return the page, Markdown."""
    inherited = ", ".join(f"`{name}`" for name in INHERITED)
    return f"{_HEAD}\n{''.join(_sections())}{_SERVICES.replace('{inherited}', inherited)}"


def _sections() -> Iterator[str]:
    for name, definition in DEFINITIONS.items():
        yield f"### `{name}`\n\n{definition.help}\n\n"
        yield from (f"- {fact}\n" for fact in _facts(name, definition))
        yield "\n"


def _facts(name: str, definition: SettingDefinition) -> Iterator[str]:
    dashed = name.replace("_", "-")
    flag = definition.value_type is BOOLEAN
    yield f"default: {definition.default}"
    yield f"value: {definition.expected}"
    yield f"variable `{variable(name)}`, option " + (f"`--{dashed}` or `--no-{dashed}`" if flag else f"`--{dashed}`")
    if definition.nova:
        section, _, nova = definition.nova.rpartition("/")
        yield f"Nova's name: `{nova}`" + (f" in section `{section}`" if section else "")


if __name__ == "__main__":
    sys.stdout.write(reference())
