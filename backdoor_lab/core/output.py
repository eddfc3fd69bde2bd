"""Standard output, error and logs that never end the work, and printable lines for them.

Nobody may be reading any more (``| head -1``), there may be no output at all (``>&-``), or the
disk that it goes to may be full: then what is printed is lost, and the program goes on.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any, TextIO


def survive_lost_output() -> None:
    """From now on a standard stream of this process that cannot be written to swallows what is
    printed; what made it so is said on the other one, unless its reader just left."""
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
    """A standard stream. Once a write fails, it leads nowhere."""

    def write(self, data: bytes | bytearray | memoryview) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                other = sys.stderr if self.fileno() == 1 else sys.stdout
                print(f"warning: output is lost from here on: {error.strerror}", file=other)
            return len(data)


def plain(text: str) -> str:
    """One printable line: no newline, no terminal escape, no text-direction mark."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


class _Printable(logging.Handler):
    """Names and paths in a message do nothing to the terminal that it is read on."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(plain, super().format(record).splitlines()))


class Terminal(_Printable, logging.StreamHandler[TextIO]):
    """A log handler for what is standard output at that moment."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


class LogFile(_Printable, logging.FileHandler):
    """A log file that is given up, with one line, once it cannot be opened or written."""

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
        said = f"warning: {self.baseFilename}: no more of the log is written ({error.strerror})"
        print(plain(said), file=sys.stderr)
