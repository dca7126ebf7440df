"""The control socket of a supervisor: a unix socket for operators. The protocol is in docs/workers.md."""
