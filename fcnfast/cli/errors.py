"""Errors as one line that begins with the file or the flag; warnings likewise."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import warnings
from collections.abc import Iterator

from ..errors import InputError

FAILED, UNUSABLE, STOPPED, INTERRUPTED, CLOSED = 1, 2, 75, 130, 141
"""Exit codes: some pictures failed; nothing could be done; SIGTERM stopped a training run, which
can be resumed; Ctrl-C; the reader of stdout left."""

LONGEST = 300  # the most characters in a line; the middle of a longer one is left out


def one_line(text: str) -> str:
    """Return a message as one printable line of at most `LONGEST` characters, both ends intact."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    half = LONGEST // 2 - 3
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


def complain(message: str) -> int:
    """Print an error as one line on stderr; return its exit code."""
    print(one_line(f"fcnfast: error: {message}"), file=sys.stderr)
    return UNUSABLE


def warn(message: str) -> None:
    """Print a warning as one line on stderr."""
    print(one_line(f"fcnfast: warning: {message}"), file=sys.stderr)


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
    """Show the package's own warnings as one line each, and only the first of a kind."""
    told, show = set(), warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], *where: object) -> None:
        kind = re.sub(r"\d+", "", str(message).partition(": ")[2])
        if category is not UserWarning:
            show(message, category, *where)  # type: ignore[arg-type]
        elif kind not in told:
            told.add(kind)
            warn(str(message))

    with warnings.catch_warnings():  # puts the old function back
        warnings.showwarning = shown  # type: ignore[assignment]
        yield


def explain(error: Exception, args: argparse.Namespace) -> str | None:
    """Say what went wrong, beginning with the file or the flag; None for a bug of our own."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        if error.filename is not None and error.strerror:
            return f"{error.filename}: {error.strerror}"
        where = getattr(args, "output_dir", None) or "stdout"
        return f"{where}: {error.strerror}" if error.strerror else str(error)
    from ..device import out_of_memory

    if out_of_memory(error):
        return f"{getattr(args, 'weights', None) or 'the network'}: too large for the memory"
    return None
