"""The parts of a service: lifecycle, order of start and stop, service tree, health, WSGI applications."""
