"""What the machine has."""

import contextlib
import os
from pathlib import Path


def memory_here() -> float:
    """Bytes that this process can have at most: the machine's memory, or a limit of the shell or container below it.

    >>> memory_here() > 0
    True
    """
    limits = [float("inf")]
    with contextlib.suppress(AttributeError, ValueError, OSError, ImportError):  # not a POSIX system
        import resource

        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            limits.append(max(0, soft - taken))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text()))
    return min(limits)
