"""Where results go: names that do not collide, folders that can be written, JSON files."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError
from .decode import PathLike
from .images import write_bytes


def output_names(paths: Sequence[PathLike]) -> list[str]:
    """Return a name for each picture: its stem, numbered where it is taken.

    Upper and lower case count as the same letter, as they do in some file systems.
    """
    stems = [Path(path).stem for path in paths]
    reserved = {stem.casefold() for stem in stems}
    taken: set[str] = set()
    names = []
    for stem in stems:
        name, number = stem, 1
        while name.casefold() in taken or (number > 1 and name.casefold() in reserved):
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def refuse_replacing(inputs: Sequence[PathLike], outputs: Sequence[PathLike]) -> None:
    """Raise InputError when one of the inputs would be replaced by an output."""
    taken = {os.path.realpath(path) for path in outputs}
    for path in inputs:
        if os.path.realpath(path) in taken:
            raise InputError(f"{path}: would be replaced by an output; choose another folder")


@contextlib.contextmanager
def output_folders(*folders: Path) -> Iterator[None]:
    """Make folders that can be written; of those that were made, the empty ones go at the end.

    Raises:
        InputError, OSError: a folder cannot be made or written.
    """
    made = []
    try:
        for folder in folders:
            for path in reversed([folder, *folder.parents]):
                if not path.is_dir():
                    if path.exists():
                        raise InputError(f"{path}: is not a folder; no output can be written there")
                    path.mkdir()
                    made.append(path)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        yield
    finally:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()


def write_json(path: PathLike, content: object) -> None:
    """Write a JSON file whole or not at all.

    Links stay and are followed: a pipe or a terminal, such as /dev/stdout may be, is written to.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    if os.path.exists(path) and not os.path.isfile(path):
        Path(path).write_text(text, encoding="utf-8")
    else:
        write_bytes(os.path.realpath(path), text.encode())
