"""Why a connection to the broker failed or was lost, as an error that tells the operator what to do."""

from typing import cast

import attrs
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.config.errors import SettingError
from novasvc.config.transport_url import BrokerAddress, Host
from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.amqp.reply_codes import broker_error
from novasvc.transport.errors import BrokerError, BrokerRefusedError, BrokerUnavailableError

_log = Logger()

_ACCESS_REFUSED = 403
"""Reply code access-refused: wrong credentials during the handshake, a missing permission after it."""
_TLS_FAILURE = "OpenSSL.SSL.Error"
"""By name: OpenSSL is imported only when TLS is used."""
_NETWORK_FAILURES = (
    "twisted.internet.error.ConnectError",
    "twisted.internet.error.ConnectionClosed",
    "twisted.internet.error.DNSLookupError",
    "twisted.internet.defer.TimeoutError",
)
_PLAINTEXT_REASONS = frozenset(
    {"wrong version number", "packet length too long", "http request", "record layer failure"}
)
"""OpenSSL's reasons for an answer that is not TLS."""
_ALERTS = {
    "certificate required": "it requires a client certificate; set rabbit_ssl_cert_file and rabbit_ssl_key_file",
    "unknown ca": "it does not trust the authority that signed rabbit_ssl_cert_file",
    "certificate expired": "it rejects the certificate in rabbit_ssl_cert_file as expired",
    "bad certificate": "it rejects the certificate in rabbit_ssl_cert_file",
    "handshake failure": "there is no TLS version or cipher in common, or it requires a client certificate",
    "protocol version": "it does not support TLS 1.2 or later",
}
"""TLS alerts of the broker (RFC 8446 6.2), by the end of OpenSSL's reason text."""


@attrs.define
class ConnectionErrors:
    """Explains the failures of one attempt to connect, and the loss of the connection that it led to.

    :param address: of the broker.
    :param host: the host that the attempt is for.
    :ivar certificate_problem: why the host's certificate was rejected; "" if it was not. OpenSSL's own error says only
        that it was.
    """

    _address: BrokerAddress
    _host: Host
    certificate_problem: str = attrs.field(default="", init=False)

    def certificate_rejected(self, problem: str) -> None:
        """Record why the host's certificate was rejected; the failure of the attempt follows."""
        self.certificate_problem = problem

    def from_attempt(self, failure: Failure, *, handshaking: bool) -> BrokerError:
        """Explain why the attempt failed; log a failure of an unexpected type with its traceback.

        :param handshaking: the handshake was under way: the TCP or TLS connection was established.
        """
        error = failure.value
        if isinstance(error, AMQPClosedError):
            return self.from_close(error, handshaking=handshaking)
        if isinstance(error, BrokerError):
            return error
        if isinstance(error, SettingError):  # a TLS file that open() could read, and that has changed since
            return BrokerRefusedError(self._shown, str(error))
        if not (_is_tls_failure(failure) or isinstance(error, OSError) or failure.check(*_NETWORK_FAILURES)):
            _log.failure("unexpected error while connecting to {broker}", failure, broker=self._shown)
        return self._from_socket(failure)

    def from_close(self, reason: AMQPClosedError, *, handshaking: bool) -> BrokerError:
        """Explain why the connection ended; parameters as for :meth:`from_attempt`."""
        if reason.cause is not None:
            return self._from_socket(reason.cause)
        error = broker_error(self._shown, reason)
        if type(error) is not BrokerRefusedError:
            return error
        if reason.code == _ACCESS_REFUSED and handshaking:
            return BrokerRefusedError(self._shown, f"login refused for user {self._host.username!r}: {reason}")
        if reason.code == _ACCESS_REFUSED or "vhost" in reason.problem:
            return BrokerRefusedError(self._shown, f"access to virtual host {self._address.vhost!r} refused: {reason}")
        return BrokerRefusedError(self._shown, f"it refuses the connection: {reason}")

    def _from_socket(self, failure: Failure) -> BrokerError:
        # A TLS failure is not retried quickly: the host was reached, and only an operator can resolve it.
        kind = BrokerRefusedError if _is_tls_failure(failure) else BrokerUnavailableError
        return kind(self._shown, self.certificate_problem or _reason(failure))

    @property
    def _shown(self) -> str:
        return self._address.shown(self._host)


def _is_tls_failure(failure: Failure) -> bool:
    return bool(failure.check(_TLS_FAILURE))


def _reason(failure: Failure) -> str:
    """Return a one-line reason."""
    if _is_tls_failure(failure):
        return _tls_reason(cast(BaseException, failure.value))
    return (failure.getErrorMessage() or type(failure.value).__name__).rstrip(".")


def _tls_reason(error: BaseException) -> str:
    """Explain OpenSSL's error queue: tuples of library, function and reason."""
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    reasons = [str(entry[-1]).lower() for entry in queue if entry]
    if any(reason in _PLAINTEXT_REASONS for reason in reasons):
        return "the port does not speak TLS; use amqp://, or the broker's TLS port"
    for reason in reasons:
        for end, text in _ALERTS.items():
            if reason.endswith(end):
                return text
    return f"TLS failed: {', '.join(reasons) or 'the connection was closed during the handshake'}"
