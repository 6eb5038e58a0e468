"""How much memory the machine can still give: asked before a run takes it.

Linux hands out more than it has and then ends whatever process touches it.
"""

from __future__ import annotations


def available_bytes() -> int | None:
    """What can be taken without swapping; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None
    return None


def require_memory(needed: int, what: str) -> None:
    """Raise MemoryError when `what` takes more bytes than there are."""
    there = available_bytes()
    if there is not None and needed > there:
        raise MemoryError(f"{what} takes {needed:,} bytes; this machine has {there:,} to give")
