"""Generate ``docs/settings.md`` from the settings: ``python -m novasvc.config.reference > docs/settings.md``."""

import sys
from collections.abc import Iterator

from novasvc.config.definition import SettingDefinition
from novasvc.config.environment import variable
from novasvc.config.model import DEFINITIONS
from novasvc.config.sections.services import INHERITED
from novasvc.config.types import BOOLEAN

_HEAD = """\
# Settings

Every setting has a default. It can be set in a TOML file, in an INI file with Nova's names, in an environment
variable, and as an option of `twistd novasvc`. If several sources set it, the later one in this list wins:

1. default
2. TOML files, in the order given
3. INI files, in the order given
4. environment variables
5. options

`novasvc config show` prints every value and its origin. A node with an invalid configuration does not start; it reports
all errors together. `novasvc config check FILE...` finds them without starting anything. In the same run it finds
managers that cannot be imported, options that their constructors do not take, unreadable certificates, token files and
applications, missing drivers, directories that are not writable, and addresses in use. Checks that depend on an invalid
value run once that is corrected; if a file cannot be read, all of them wait. With `--running`, for a node that is
already running, the check for addresses in use is skipped; a running supervisor is detected without it.

Both commands take files as arguments or as `--config FILE`. They also read the environment variables, as
`twistd novasvc --config FILE` does: run them as the node's user, with the same variables and the same `PYTHONPATH`.

## Files

`--config FILE`, which may be repeated, names the configuration files; without it, the variable `NOVASVC_CONFIG` does,
separated by colons. `.toml` is TOML; `.ini` and `.conf` are INI. Relative paths, of files and in values, are relative
to the working directory.

```toml
# /etc/novasvc/novasvc.toml
report_interval = 5
service_down_time = 30
database_url = "postgresql://novasvc@db.example.org/novasvc"
```

```ini
# /etc/novasvc/novasvc.conf: section DEFAULT, and the database under Nova's name
[DEFAULT]
report_interval = 5
compute_manager = example.compute.ComputeManager
[database]
connection = postgresql://novasvc@db.example.org/novasvc
```

TOML has types: a number is a number, a boolean is `true` or `false`. INI files, variables and options have only text:
there, `yes`, `on`, `1` and `no`, `off`, `0` are booleans, too, and `none` unsets an optional setting. An option for a
boolean takes no value: `--no-migrate`. A value in an extra pair of quotes, such as `NOVASVC_HOST='"h1"'`, is an error,
because the inner quotes would become part of the value.

## INI files

An INI file may be shared with Nova. It is read as oslo.config reads it:

- Quotes around a value are removed: `state_path = "/srv/nova"`.
- `$name` and `${name}` in a value are replaced by the value of another option, in the same section or else in
  `DEFAULT`; `${section.name}` names an option of another section. A setting of novasvc is replaced by its final value,
  from whichever source, or by its default; any other option by its value in the files. `$$` is a dollar sign. A
  reference to an undefined option is an error.
- If an option is given several times, the last value counts. Lists are separated by commas:
  `enabled_apis = osapi_compute, metadata`.
- Sections may repeat. Their names are case-insensitive, except for `DEFAULT`.
- A line that starts with a space or a tab continues the value above it. `#` and `;` start a comment only at the start
  of a line: `state_path = "/srv/nova"  # the share` sets a path that includes the quotes and the comment. A warning
  names such a value.
- A byte order mark at the start of the file is ignored; oslo.config rejects it.

Options that are not settings of novasvc are ignored, because they are Nova's. One warning per file lists them, at the
start and in `novasvc config check`. A name that closely resembles a setting or section, such as `[defaults]`, is
followed by a suggestion: check these for typos. In TOML files, variables and options an unknown name is an error.

Every name in `DEFAULT` that ends in `_manager`, `_listen`, `_listen_port` or `_workers` is read as a setting of the
topic or API named by the rest, because a program may serve topics and APIs that no setting names. So Nova's
`ec2_listen` is read, and has no effect. An invalid value is ignored with a warning, unless a service or an API in the
settings has that name; then it is an error.

## Secrets

A URL may contain a password. novasvc masks it as `***` wherever it shows it: in the log, in errors, in
`novasvc config show`. To keep it out of the environment, put the value into a file and name the file in a variable
that ends in `_FILE`: `NOVASVC_DATABASE_URL_FILE=/run/secrets/database_url`. Every variable has such a counterpart; to
set both is an error.

Other secrets are masked by their name, among the `options` of a manager and among the parameters of a URL. The name
contains `pass`, `passphrase`, `password`, `pwd`, `secret`, `token`, `credential`, `private_key`, `api_key`,
`access_key`, `signing_key` or `encryption_key`, or ends in `auth`. Name a manager's secrets so.

## Settings
"""

_SERVICES = """\
## Managers

`<topic>_manager`, such as `compute_manager` or `NOVASVC_COMPUTE_MANAGER`, names the class that serves
a topic: `package.module.Class` or `package.module:Class`.

## Services

A process runs a single service, which `binary`, `topic` and `manager` configure. To run several services, or to pass
options to a manager, write a `[[service]]` table for each; `binary`, `topic` and `manager` then belong in the tables.
The tables of a later file replace those of an earlier one.

```toml
[[service]]
binary = "novasvc-agent"

[[service]]
binary = "nova-compute"
manager = "example.compute.ComputeManager"
report_interval = 5
[service.options]           # keyword arguments for the manager's constructor, besides host
disks = ["sda", "sdb"]
```

| key of a table | default |
|---|---|
| `binary` | `novasvc-` and the topic; `binary` or `topic` is required |
| `topic` | `binary` without its prefix `novasvc-` or `nova-` |
| `manager` | `<topic>_manager`; the topics `agent` and `conductor` have a built-in manager |
| `workers` | none: it shares the processes of the other services |
| `options` | none |
| {inherited} | the setting of the same name |

No two services may have the same host and binary, or the same host and topic. `service = []` runs no service:
with `api = true` or `enabled_apis`, the process then serves only these.

## APIs

`enabled_apis` and `enabled_ssl_apis` name the WSGI applications to serve; see [http.md](http.md). Each one, here
`osapi_compute`, has these settings:

| setting | default |
|---|---|
| `osapi_compute_listen` | 127.0.0.1 |
| `osapi_compute_listen_port` | 8774 for `osapi_compute`, 8775 for `metadata`, otherwise 0, a free port |
| `osapi_compute_workers` | none: one per CPU if the process is supervised |
| `osapi_compute_manager` | none; its hooks are called around start and stop |

## Rules

- `service_down_time` must be greater than the `report_interval` of each service that runs here. If
  `fence_after` is not 0, it must be greater, too, and none of these intervals may be 0.
- A certificate needs its key: `ssl_cert_file` and `ssl_key_file`, `rabbit_ssl_cert_file` and `rabbit_ssl_key_file`.
- `enabled_ssl_apis` needs a certificate. None of the `enabled_apis` may be named `api`.
- A service with `db_allowed = false` needs a conductor: on `memory:`, a `[[service]]` table with
  `topic = "conductor"` above its own. The conductor itself needs the database.
- An unknown name is an error, except in INI files. The variables that Kubernetes sets for a Service named `novasvc` or
  `novasvc-api`, such as `NOVASVC_API_PORT=tcp://10.0.0.1:80`, are ignored.
"""


def reference() -> str:
    """Return the page as Markdown."""
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
