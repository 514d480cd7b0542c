"""A child that is killed at any line of our own code, and how hard the fault tests try."""

import os
import signal
import sys
from collections.abc import Callable

# SPECGD_FAULTS=10 tries ten times as many kills and mutants.
SCALE = int(os.environ.get("SPECGD_FAULTS", "1"))


def in_child(work: Callable[[], object], ours: tuple[str, ...], kill_at: int = 0) -> int:
    """Run in a forked process that dies at the n-th line of our code; return the lines it ran.

    ``ours`` are parts of the paths whose lines count; with ``kill_at`` 0 the child lives.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        lines = 0

        def trace(frame, event, argument):
            nonlocal lines
            if not any(part in frame.f_code.co_filename for part in ours):
                return None
            if event == "line":
                lines += 1
                if lines == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        signal.alarm(60)  # a child that hangs must not hang the tests
        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(None)
            os.write(writing, str(lines).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    assert ended == (signal.SIGKILL if kill_at and not text else 0), (ended, text)
    return int(text or 0)
