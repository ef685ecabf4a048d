"""Writing files: atomically, and under names that do not collide."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import InputError

PathLike = str | os.PathLike[str]

_temporary_number = itertools.count()


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path beside it, then rename that to `path`.

    If the process is killed, `path` is either the old file or the new one. Links are followed, and
    an old file's permissions stay. To survive a power failure, the body must flush (os.fsync). The
    OSError of the body or the rename, or of a folder, a device or a pipe, names `path`.
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".fcnfast-{os.getpid()}-{next(_temporary_number)}.tmp"
    try:
        if target.exists() and not target.is_file():  # a device would become a file
            raise OSError(errno.EINVAL, "not a regular file")
        temporary.touch()
        # The body may replace the temporary file with one that only its owner can read.
        mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            # The system names the temporary file; the user knows only the real one.
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; InputError if another one holds it.

    The system frees it when the process ends, in any way. Without `fcntl`, nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = folder / ".lock"
    with path.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is training there") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed processes left in `folder`."""
    for leftover in folder.glob(".fcnfast-*.tmp"):
        leftover.unlink(missing_ok=True)


def write_bytes(path: PathLike, content: bytes | memoryview) -> None:
    """Write a file atomically; OSError as in `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: PathLike, content: object) -> None:
    """Write a JSON file atomically, or directly to a pipe or a terminal such as /dev/stdout."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    own = os.fspath(path)
    if own.startswith("/dev/") or (os.path.exists(own) and not os.path.isfile(own)):
        try:
            with open(own, "a", encoding="utf-8") as file:  # /dev/stdout may be a file with content
                file.write(text)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, own) from error
    else:
        write_bytes(path, text.encode())


def output_names(paths: Sequence[PathLike]) -> list[str]:
    """Return a name for each path: its stem, numbered if an earlier path has the same stem.

    Case is ignored, as in some file systems.
    """
    stems = [Path(path).stem for path in paths]
    reserved = {stem.casefold() for stem in stems}
    taken: dict[str, str] = {}
    for stem in stems:
        name, number = stem, 1
        while name.casefold() in taken or (number > 1 and name.casefold() in reserved):
            number += 1
            name = f"{stem}-{number}"
        taken[name.casefold()] = name
    return list(taken.values())


def refuse_replacing(inputs: Sequence[PathLike], outputs: Sequence[PathLike]) -> None:
    """Raise InputError when an output would replace one of the inputs."""
    taken = set(map(os.path.realpath, outputs))
    for path in inputs:
        if os.path.realpath(path) in taken:
            raise InputError(f"{path}: would be replaced by an output; choose another folder")


@contextlib.contextmanager
def output_folders(*folders: Path) -> Iterator[None]:
    """Create writable folders, or raise OSError or InputError; on exit remove new empty ones."""
    made = []
    try:
        for folder in folders:
            missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
            for path in reversed(missing):
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
