"""How much memory this process has had at most."""

import sys
from pathlib import Path


def peak_bytes() -> int:
    """The most that was resident in this process so far. Not getrusage's figure where /proc has its own: a process
    that was just started bears that of the one that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        kilobytes = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(kilobytes[0]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
