"""What every process the server starts begins with, and threads that give way to others."""

import ctypes
import os
import signal
import sys
import threading

__all__ = ["die_with_server", "give_way"]

NICE = 10
"""A tenth of the processor beside a busy thread, all of one that is idle."""


def die_with_server() -> None:
    """End when the thread that started this process does, and leave Ctrl-C to the server.

    The server drains its requests on Ctrl-C and then stops the engine, so the engine must not get
    the terminal's signal itself.
    """
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    os.setpgid(0, 0)


def give_way() -> None:
    """Run this thread, and those and the processes it starts, when others leave time for it."""
    if sys.platform == "linux":  # elsewhere it would be the whole process
        thread = threading.get_native_id()
        nice = max(NICE, os.getpriority(os.PRIO_PROCESS, thread))  # it cannot be lowered again
        os.setpriority(os.PRIO_PROCESS, thread, nice)
