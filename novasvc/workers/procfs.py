"""What the kernel tells of a process in /proc."""


def private_memory(pid: int) -> int | None:
    """Return the private memory of a process in bytes; None if it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as figures:  # noqa: PTH123 - no file for a Path
            return sum(int(line.split()[1]) * 1024 for line in figures if line.startswith("Private_"))
    except OSError:
        return None


def zombie_status(pid: int) -> int | None:
    """Return the wait status of a zombie that its (perhaps stopped) forkserver has not reaped; None otherwise."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as figures:  # noqa: PTH123 - no file for a Path
            state, *_, status = figures.read().rpartition(")")[2].split()
    except OSError:
        return None
    return int(status) if state == "Z" else None
