"""Standard streams and log files whose failure does not stop the program.

If the reader has exited (``| head -1``), the stream is closed (``>&-``) or the disk is full, the
output is lost and the program continues.
"""

from __future__ import annotations

import copy
import io
import logging
import os
import sys
from typing import Any, TextIO


def survive_lost_output() -> None:
    """From now on, discard output to a standard stream if writing to it fails. The first failure is
    reported on the other standard stream, unless the reader merely exited."""
    for name in ("stdout", "stderr"):
        stream, original = getattr(sys, name), getattr(sys, f"__{name}__")
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (until the process ends)
        elif stream is original and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _lasting(stream))


def _lasting(stream: io.TextIOWrapper) -> TextIO:
    raw: Any = _Output(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Output(io.FileIO):
    """A standard stream that is redirected to the null device after a failed write."""

    def write(self, data: bytes | bytearray | memoryview) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                other = sys.stderr if self.fileno() == 1 else sys.stdout
                print(
                    "warning: further output is lost, since it cannot be written:"
                    f" {error.strerror}",
                    file=other,
                )
            return len(data)


def plain(text: str) -> str:
    """Returns `text` on one printable line: no newlines, terminal escapes or text-direction
    marks."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


IN_FILE_ONLY = "traceback_in_file_only"
"""The attribute that marks a log record whose traceback is written only to log files."""


class _Printable(logging.Handler):
    """Replaces unprintable characters in log messages, which contain names and paths from users."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(plain, super().format(record).splitlines()))


class Terminal(_Printable, logging.StreamHandler[TextIO]):
    """A log handler that writes to the current `sys.stdout`."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout

    def format(self, record: logging.LogRecord) -> str:
        if getattr(record, IN_FILE_ONLY, False):
            record = copy.copy(record)
            record.exc_info = record.exc_text = None
        return super().format(record)


class LogFile(_Printable, logging.FileHandler):
    """A log file. If it cannot be opened or written to, logging to it stops, with one warning."""

    _lost = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._lost:
            return
        try:
            super().emit(record)
        except OSError as error:
            self._give_up(error)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._give_up(error)
        else:
            super().handleError(record)

    def _give_up(self, error: OSError) -> None:
        self._lost = True
        said = f"warning: {self.baseFilename}: logging to this file stops ({error.strerror})"
        print(plain(said), file=sys.stderr)
