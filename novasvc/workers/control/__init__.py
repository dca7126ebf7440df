"""The unix socket by which operators see and steer a supervisor. The protocol is in docs/workers.md."""
