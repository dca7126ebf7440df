"""What ``ps`` calls a process."""


def set_title(title: str) -> None:
    """Call this process something, where setproctitle is installed.

    :param title: holds no secrets: every user of the host can read it.
    """
    try:
        from setproctitle import setproctitle  # noqa: PLC0415 - an extra
    except ImportError:
        return
    setproctitle(title)
