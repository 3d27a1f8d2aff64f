"""A descriptor that becomes readable every so often: what a source that can only look again gives to wait for."""

from __future__ import annotations

import contextlib
import os
import threading


class Ticker:
    """Readable ``every_s`` seconds after it was made, and again and again. For one reader; close it in the end."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._readable, self._tick = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="consecution-ticker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            with contextlib.suppress(BlockingIOError):  # Nobody has looked for long, and it is readable anyway.
                os.write(self._tick, b".")

    def fileno(self) -> int:
        return self._readable

    def clear(self) -> bool:
        """Silent until the next tick. Returns whether it has ticked."""
        try:
            return bool(os.read(self._readable, 1 << 16))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Harmless when repeated."""
        if not self._closing.is_set():
            self._closing.set()
            self._thread.join()
            os.close(self._readable)
            os.close(self._tick)
