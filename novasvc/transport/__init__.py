"""Message transports; each provides :class:`novasvc.interfaces.ITransport`."""
