"""How much main memory this process may still take. Knows nothing of what it is wanted for."""

from pathlib import Path

__all__ = ["free_memory"]

CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes still free on this machine and in this container; None where that cannot be told."""
    free = _meminfo()
    limit = _cgroup_room()
    return min(free, limit) if free is not None and limit is not None else free or limit


def _meminfo() -> int | None:
    file = Path("/proc/meminfo")
    if not file.is_file():
        return None
    lines = file.read_text(encoding="ascii").splitlines()
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _cgroup_room() -> int | None:
    """What the container may still take."""
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if not (limit.is_file() and used.is_file()):
        return None
    allowed = limit.read_text(encoding="ascii").strip()
    return None if allowed == "max" else int(allowed) - int(used.read_text(encoding="ascii"))
