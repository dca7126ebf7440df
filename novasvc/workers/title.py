"""The title of a process in ``ps``."""


def set_title(title: str) -> None:
    """Set the process title, if setproctitle is installed.

    :param title: without secrets: every user of the host can read it.
    """
    try:
        from setproctitle import setproctitle  # noqa: PLC0415 - an extra
    except ImportError:
        return
    setproctitle(title)
