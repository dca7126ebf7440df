"""How messages move; each transport provides :class:`novasvc.interfaces.ITransport`."""
