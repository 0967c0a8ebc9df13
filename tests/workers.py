"""Workers that die: what several folders' tests do to a running executor."""

from __future__ import annotations

import psutil


def kill_a_worker(name):
    """Kill one of this process's workers, as its command line names them; a callback for progress."""
    killed = []

    def kill(done, total):
        if done and not killed:
            for process in psutil.Process().children(recursive=True):
                if name in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
                    return

    return kill, killed
