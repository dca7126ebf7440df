"""RabbitMQ: a node of one's own, or a cluster of three.

In a script::

    with Broker(directory) as broker:
        print(broker.url(broker.new_vhost()))
"""

import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import quote
from uuid import uuid4

from tests.servers.certificates import Certificates
from tests.servers.erlang import Site, binary
from tests.servers.installation import Installation
from tests.servers.process import end, free_ports, missing, spawn

PATIENCE = 60.0
"""Seconds in which a node has to be ready; 5 to 13 are usual on two cores."""

SCRIPTS = Path("/usr/lib/rabbitmq/bin")
"""The scripts themselves. Those on the PATH change the user, and read the cookie of the system's own node."""

OPTIONAL = re.compile(
    r"rabbitmq_(?!prelaunch)|amqp_client|amqp10_client|base64url|cow|eetcd|gun|jose|prometheus|quantile|README"
)
"""Plugins that a node starts without, and what only they need. Without them it starts 2 s earlier and 15 MB smaller."""


class Broker:
    """One node, with a user ``guest`` who may do everything.

    Its methods block; only :meth:`start` has to be called in the main thread.

    :param directory: is made; everything of the node is in it.
    :param name: of the node.
    :param site: what it shares with the nodes of its cluster.
    :param certificates: it listens with TLS, too, at :attr:`tls_port`, as ``server``; a client
        need not have a certificate, but if it has one, that is checked.
    :param settings: further lines of rabbitmq.conf.
    :param management: it runs the management API, at :attr:`management_url`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "n1",
        site: Site | None = None,
        certificates: Certificates | None = None,
        settings: Sequence[str] = (),
        management: bool = False,
    ) -> None:
        installation = site.installation if site is not None else Installation.chosen()
        installed = installation.find(f"{SCRIPTS.parent}/lib/rabbitmq_server-*/plugins")
        programs = (SCRIPTS / "rabbitmq-server", "/usr/bin/epmd")
        if not installed or not all(installation.find(str(program)) for program in programs):
            raise missing("RabbitMQ; apt-get install rabbitmq-server")
        self.version = installed[-1].parent.name.rpartition("-")[2]
        major, minor, *_ = self.version.split(".")
        self.release = int(major), int(minor)
        self.node = f"{name}@localhost"
        self.certificates = certificates
        self._own_site = site is None
        self._site = site or Site(directory / "site", installation)
        self._installation = installation
        self._directory = directory / name
        self._directory.mkdir(parents=True)
        self.port, self.tls_port, self._management_port, distribution, control = free_ports(5)
        self._process: subprocess.Popen[bytes] | None = None
        self._link_plugins(installed[-1], management=management)
        if management:
            settings = (*settings, "management.tcp.ip = 127.0.0.1", f"management.tcp.port = {self._management_port}")
        self._write_settings(settings)
        self._environment = self._site.environment | {
            # Its scripts then become the node by exec, and do not wait beside it.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_CTL_DIST_PORT_MIN": str(control),
            "RABBITMQ_CTL_DIST_PORT_MAX": str(control + 20),
            "RABBITMQ_CONF_ENV_FILE": self._path("none"),
            "RABBITMQ_CONFIG_FILE": self._path("rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": self._path("none.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": self._path("advanced.config"),
            "RABBITMQ_PLUGINS_DIR": self._path("plugins"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": self._path("enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": self._path("mnesia"),
            "RABBITMQ_LOG_BASE": self._path("log"),
            "RABBITMQ_PID_FILE": self._path("node.pid"),
            "RABBITMQ_MAX_NUMBER_OF_PROCESSES": "65536",
            "RABBITMQ_MAX_NUMBER_OF_ATOMS": "1000000",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel net_ticktime 8 -kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _path(self, name: str) -> str:
        return str(self._directory / name)

    def _link_plugins(self, installed: Path, *, management: bool) -> None:
        (self._directory / "plugins").mkdir()
        for plugin in self._installation.find(f"{installed}/*"):
            name = plugin.name.split("-")[0]
            if management or OPTIONAL.match(name) is None:
                (self._directory / "plugins" / plugin.name).symlink_to(plugin)
        (self._directory / "enabled_plugins").write_text("[rabbitmq_management].\n" if management else "[].\n")

    def _write_settings(self, settings: Sequence[str]) -> None:
        (self._directory / "none").touch()
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            "loopback_users = none",
            "disk_free_limit.absolute = 1MB",
            # 3.10's own limit. The one of 4.x is ours, and a test sends what is over ours.
            f"max_message_size = {128 * 2**20}",
        ]
        if self.certificates is not None:
            lines += [
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
                f"ssl_options.cacertfile = {self.certificates.ca}",
                f"ssl_options.certfile = {self.certificates.server.certificate}",
                f"ssl_options.keyfile = {self.certificates.server.key}",
                "ssl_options.verify = verify_peer",
                "ssl_options.fail_if_no_peer_cert = false",
                "ssl_options.versions.1 = tlsv1.3",
                "ssl_options.versions.2 = tlsv1.2",
            ]
        text = "".join(f"{line}\n" for line in (*lines, *settings))
        (self._directory / "rabbitmq.conf").write_text(text)

    # -- the process ---------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The process of the node, which runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All that the node wrote."""
        logs = [Path(self._path("stdout")), *sorted((self._directory / "log").glob("*.log"))]
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    def start(self) -> None:
        """Start the node, with the data that it had; at once. It is ready later: :meth:`wait_ready`."""
        assert self._process is None
        self._site.start()
        command = self._installation.command([str(SCRIPTS / "rabbitmq-server")], self._directory)
        self._process = spawn(command, self._directory, self._environment)

    def wait_ready(self, patience: float = PATIENCE) -> None:
        """Wait until the node greets those who connect, at its port of TLS too; it opens its ports last."""
        assert self._process is not None
        deadline = time.monotonic() + patience
        while not self._greets():
            if self._process.poll() is not None:
                raise AssertionError(f"{self.node} ended while it started:\n{self.log}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.node} is not ready after {patience:g} s:\n{self.log}")
            time.sleep(0.05)

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 2) as connection:
                connection.settimeout(5)
                connection.sendall(b"AMQP\0\0\x09\x01")
                greeted = connection.recv(1) == b"\x01"
            if self.certificates is not None:
                socket.create_connection(("127.0.0.1", self.tls_port), 2).close()
        except OSError:
            return False
        return greeted

    def kill(self) -> None:
        """Kill it at once; what it had on disk stays. No error if it does not run."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Have it stop in order, in about a second."""
        self.thaw()
        self._end(signal.SIGTERM)

    def flush_tables(self) -> None:
        """Have the node write its tables to disk now, rather than when they have rested for half a second.

        From 4.0 on, a quorum queue that a kill finds unwritten stays without a leader for ever
        (rabbitmq-server issue 15725): its broker never answers who consumes from it.
        """
        self.eval("[ok = dets:sync(Table) || Table <- dets:all()], ok.")

    def restart(self) -> None:
        """Kill it, start it, wait until it is ready. Takes 6 to 13 s."""
        self.kill()
        self.start()
        self.wait_ready()

    def freeze(self) -> None:
        """Stop its process where it is; its connections stay, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # The kernel stops its threads one by one; until then it may still answer.
        threads = Path(f"/proc/{self.pid}/task")
        deadline = time.monotonic() + PATIENCE
        while any(") T " not in stat.read_text() for stat in threads.glob("*/stat")):
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.node} cannot be frozen")
            time.sleep(0.01)

    def thaw(self) -> None:
        """Let a frozen node go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            end(self._process, number)
            self._process = None

    def end(self) -> None:
        """Kill it, and what only it used."""
        self.kill()
        if self._own_site:
            self._site.end()

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    # -- what an operator does -------------------------------------------------------------------

    def url(self, vhost: str = "/", login: tuple[str, str] = ("guest", "guest"), port: int | None = None) -> str:
        """Return the transport URL of a vhost.

        :param login: user and password.
        :param port: of a proxy before it.
        """
        user, password = (quote(text, "") for text in login)
        return f"amqp://{user}:{password}@127.0.0.1:{port or self.port}/{quote(vhost, '')}"

    @property
    def management_url(self) -> str:
        """The URL of its management API, with the user guest."""
        return f"http://guest:guest@127.0.0.1:{self._management_port}"

    def eval(self, expression: str) -> str:
        """Evaluate an Erlang expression that ends in a full stop; return its value as Erlang writes it."""
        return self._site.evaluate(self.node, expression)

    def new_vhost(self) -> str:
        """Make a vhost in which guest may do everything; return its name."""
        vhost = f"v-{uuid4().hex}"
        self.create(vhost)
        return vhost

    # These two are novasvc.testing.servers.VirtualHosts. A node that runs the management API needs 2 s more to start.

    def create(self, vhost: str) -> None:
        """Make a vhost in which guest may do everything."""
        self.eval(f"rabbit_vhost:add({binary(vhost)}, {binary('test')}).")
        self.permit("guest", vhost)

    def delete(self, vhost: str) -> None:
        """Delete a vhost with all that is in it; those who are connected to it are cut off."""
        self.eval(f"ok = rabbit_vhost:delete({binary(vhost)}, {binary('test')}).")

    def join(self, member: "Broker") -> None:
        """Join the cluster that another node is in, with nothing kept; the node has to run, and restarts."""
        newer = self.release >= (4, 0)
        join = "rabbit_db_cluster:join" if newer else "rabbit_mnesia:join_cluster"
        running = "rabbit_nodes:list_running()" if newer else "rabbit_nodes:all_running()"
        deadline = time.monotonic() + PATIENCE

        def wait_for(node: Broker, expression: str, part: str) -> None:
            while part not in node.eval(expression):
                if time.monotonic() > deadline:
                    raise AssertionError(f"{self.node} has not joined {member.node} after {PATIENCE:g} s:\n{self.log}")
                time.sleep(0.1)

        # It greets a moment before it has started, and ends if it is told to stop in that moment.
        wait_for(self, "init:get_status().", "{started,")
        # In a process of its own, because joining cuts the connections of who asked for it.
        self.eval(f"spawn(fun() -> rabbit:stop(), {join}('{member.node}', disc), rabbit:start() end), ok.")
        wait_for(member, f"{running}.", self.node)

    def add_user(self, user: str, password: str) -> None:
        """Add a user who may do nothing yet."""
        self.eval(f"rabbit_auth_backend_internal:add_user({binary(user)}, {binary(password)}, {binary('test')}).")

    def permit(self, user: str, vhost: str, *, configure: str = ".*", write: str = ".*", read: str = ".*") -> None:
        """Permit a user what the regular expressions say."""
        given = ", ".join(binary(text) for text in (user, vhost, configure, write, read, "test"))
        self.eval(f"rabbit_auth_backend_internal:set_permissions({given}).")

    def queues(self, vhost: str) -> dict[str, int]:
        """Return the queues of a vhost: name -> messages that wait, delivered ones included."""
        return self._queues(vhost, "messages")

    def unacknowledged(self, vhost: str) -> dict[str, int]:
        """Return the queues of a vhost: name -> messages that are delivered and not acknowledged."""
        return self._queues(vhost, "messages_unacknowledged")

    def consumers(self, vhost: str) -> dict[str, int]:
        """Return the queues of a vhost: name -> consumers."""
        return self._queues(vhost, "consumers")

    def _queues(self, vhost: str, item: str) -> dict[str, int]:
        listed = self.eval(
            "lists:flatten([begin {resource, _, queue, Name} = amqqueue:get_name(Queue),"
            f" [{{{item}, Number}}] = rabbit_amqqueue:info(Queue, [{item}]),"
            ' io_lib:format("~s=~b ", [binary:encode_hex(Name), Number]) end'
            f" || Queue <- rabbit_amqqueue:list({binary(vhost)})])."
        )
        return {bytes.fromhex(name).decode(): int(number) for name, number in re.findall(r"(\w*)=(\d+)", listed)}

    def declare_queue(self, vhost: str, queue: str, *, durable: bool) -> None:
        """Declare a classic queue."""
        name = _resource(vhost, "queue", queue)
        self.eval(f"rabbit_amqqueue:declare({name}, {_atom(durable)}, false, [], none, {binary('test')}).")

    def declare_exchange(self, vhost: str, exchange: str, *, durable: bool) -> None:
        """Declare a topic exchange."""
        name = _resource(vhost, "exchange", exchange)
        self.eval(f"rabbit_exchange:declare({name}, topic, {_atom(durable)}, false, false, [], {binary('test')}).")

    def delete_exchange(self, vhost: str, exchange: str) -> None:
        """Delete an exchange, whoever uses it."""
        self.eval(f"ok = rabbit_exchange:delete({_resource(vhost, 'exchange', exchange)}, false, {binary('test')}).")

    def fill_queue(self, vhost: str, queue: str, body: bytes, number: int) -> None:
        """Put copies of a message into a queue that nobody consumes, and wait until they are there.

        100,000 take some 4 s.
        """
        before = self.queues(vhost)[queue]
        exchange = _resource(vhost, "exchange", "")
        if self.release >= (4, 0):
            put = "rabbit_queue_type:deliver([Queue], mc_amqpl:from_basic_message(Message), #{}, stateless)"
        else:
            put = "rabbit_amqqueue:deliver([Queue], rabbit_basic:delivery(false, false, Message, undefined))"
        self.eval(
            f'Message = rabbit_basic:message({exchange}, {binary(queue)}, [{{content_type, <<"application/json">>}}],'
            f" {binary(body.decode())}), {{ok, Queue}} = rabbit_amqqueue:lookup({_resource(vhost, 'queue', queue)}),"
            f" [{put} || _ <- lists:seq(1, {number})], ok."
        )
        deadline = time.monotonic() + PATIENCE
        while self.queues(vhost)[queue] < before + number:
            if time.monotonic() > deadline:
                raise AssertionError(f"{queue} does not have {number} messages after {PATIENCE:g} s")
            time.sleep(0.05)

    def delete_queue(self, vhost: str, queue: str) -> None:
        """Delete a queue, whoever uses it."""
        self.eval(
            f"{{ok, Q}} = rabbit_amqqueue:lookup({_resource(vhost, 'queue', queue)}),"
            f" {{ok, _}} = rabbit_amqqueue:delete(Q, false, false, {binary('test')})."
        )

    def connections(self, vhost: str) -> int:
        """Return how many are connected to a vhost."""
        return int(self.eval(f"length({_connections(vhost)})."))

    def close_connections(self, vhost: str, reason: str = "closed by the test") -> None:
        """Cut off those who are connected to a vhost; they are told (320)."""
        self.eval(f'[rabbit_networking:close_connection(C, "{reason}") || C <- {_connections(vhost)}].')

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """Let the node think for a while that its memory is full: it takes no messages."""
        self.eval("vm_memory_monitor:set_vm_memory_high_watermark(0).")
        try:
            # Its processes tell each other of the alarm. Until a connection has heard of it, it takes messages.
            alarm = "lists:keymember({resource_limit, memory, node()}, 1, rabbit_alarm:get_alarms())"
            state = "(catch rabbit_networking:connection_info(C, [state]))"
            running = f"[C || C <- rabbit_networking:local_connections(), {state} == [{{state, running}}]]"
            deadline = time.monotonic() + PATIENCE
            while self.eval(f"{alarm} andalso {running} == [].") != "true":
                if time.monotonic() > deadline:
                    raise AssertionError(f"{self.node} takes messages in spite of its alarm")
                time.sleep(0.01)
            yield
        finally:
            self.eval("vm_memory_monitor:set_vm_memory_high_watermark(0.4).")


def _resource(vhost: str, kind: str, name: str) -> str:
    return f"rabbit_misc:r({binary(vhost)}, {kind}, {binary(name)})"


def _atom(value: bool) -> str:
    return str(value).lower()


def _connections(vhost: str) -> str:
    return (
        "[C || C <- rabbit_networking:local_connections(),"
        f" [{{vhost, {binary(vhost)}}}] == (catch rabbit_networking:connection_info(C, [vhost]))]"
    )


class Cluster:
    """Three nodes, or fewer. Starting three takes 16 to 18 s.

    :param directory: is made; everything of the nodes is in it.
    :param size: their number.
    :param settings: further lines of each rabbitmq.conf.
    """

    def __init__(self, directory: Path, *, size: int = 3, settings: Sequence[str] = ()) -> None:
        self._site = Site(directory / "site", Installation.chosen())
        names = [f"n{number}" for number in range(1, size + 1)]
        self.nodes = [Broker(directory, name=name, site=self._site, settings=settings) for name in names]

    def start(self) -> None:
        """Start the nodes, and join them."""
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_ready()
        first, *others = self.nodes
        for node in others:
            node.join(first)
            node.wait_ready()

    def url(self, vhost: str) -> str:
        """Return a transport URL that names all nodes."""
        hosts = ",".join(f"guest:guest@127.0.0.1:{node.port}" for node in self.nodes)
        return f"amqp://{hosts}/{quote(vhost, '')}"

    def split(self) -> None:
        """Have the first node and the others not talk to each other, and each go on by itself."""
        first, *others = self.nodes
        for node in others:
            # Not the same cookie at both ends, by which they would find each other again.
            for one, other in ((first, node), (node, first)):
                one.eval(f"erlang:set_cookie('{other.node}', 'of {one.node}'), erlang:disconnect_node('{other.node}').")

    def heal(self, loser: Broker) -> None:
        """End a split, as an operator does: restart the node that is not to be believed. It is ready later."""
        for node in self.nodes:
            if node is not loser:
                node.eval(f"erlang:set_cookie('{loser.node}', erlang:get_cookie()).")
        loser.kill()
        loser.start()

    def end(self) -> None:
        """Kill all."""
        for node in self.nodes:
            node.kill()
        self._site.end()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
