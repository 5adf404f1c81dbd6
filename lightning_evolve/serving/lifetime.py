"""The processes of a server: they start, stop and die together."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing as mp
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from types import FrameType

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_LOOKS_EVERY = 0.05  # seconds; a child that ends before its first look is never noticed


def end_with_parent() -> None:
    """Has this process killed when its parent has ended.

    A server that was killed leaves nothing behind that holds its port. Only Linux can do that.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_forks_with_me() -> None:
    """Has every process that this one forks from now on killed when this one has ended."""
    os.register_at_fork(after_in_child=end_with_parent)


def end_children() -> None:
    """Ends the processes that this one has started and that are still there."""
    for child in mp.active_children():
        child.terminate()


def stop_once(bereaved: Callable[[], None]) -> Callable[[], int]:
    """Makes SIGTERM, Ctrl-C and the death of a child interrupt this process, the first time.

    Args:
        bereaved: called before the interrupt if it is for the death of a child.

    Returns:
        A function that gives the exit code: 0 if it was a signal of somebody else, 2 if a child has
        ended with that after it told the user what to mend, 1 if a child has died.
    """
    me, told = os.getpid(), threading.Event()
    dead: list[BaseProcess] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_IGN)
        told.set()
        # Its monitor stumbles over the processes that end.
        logging.getLogger("litserve").setLevel(logging.CRITICAL)
        if os.getpid() != me:  # a child that has no handler of its own yet
            sys.exit(0)
        raise KeyboardInterrupt

    def watch() -> None:
        seen: set[BaseProcess] = set()
        while not told.is_set():
            alive = set(mp.active_children())
            dead.extend(seen - alive)
            if dead and not told.is_set():
                bereaved()
                os.kill(me, signal.SIGTERM)
                return
            seen = alive
            time.sleep(_LOOKS_EVERY)

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, interrupt)
    threading.Thread(target=watch, name="children", daemon=True).start()
    return lambda: (2 if dead[0].exitcode == 2 else 1) if dead else 0
