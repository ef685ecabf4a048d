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

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]

_temporary_number = itertools.count()
_held: set[str] = set()  # the folders that `locked` holds in this process


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
    """Hold a folder for one training run; InputError if another run, here or elsewhere, has it.

    The system frees it when the process ends, however it ends. Where files cannot be locked (no
    `fcntl`, or a file system without locks), only runs of this process are kept apart.
    """
    place, told = os.path.realpath(folder), f"{folder}: another run is training there"
    if place in _held:
        raise InputError(told)
    _held.add(place)
    with contextlib.ExitStack() as stack:
        stack.callback(_held.discard, place)
        if fcntl is not None:
            with contextlib.suppress(PermissionError):  # another user's file
                stack.enter_context(_locked_file(Path(place, ".lock"), told))
        yield


@contextlib.contextmanager
def _locked_file(path: Path, told: str) -> Iterator[None]:
    """Hold a file, and remove it in the end; InputError with `told` if another process has it."""
    with contextlib.ExitStack() as stack:
        current = False
        while not current:
            file = stack.enter_context(path.open("a"))
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise InputError(told) from None
            with contextlib.suppress(FileNotFoundError):  # removed by who held it until now
                current = os.path.samestat(os.fstat(file.fileno()), path.stat())
        stack.callback(path.unlink, missing_ok=True)
        yield


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
    if own in ("/dev/stdout", "/dev/fd/1"):  # it may be a file with content
        print(text, end="", flush=True)
    elif os.path.exists(own) and not os.path.isfile(own):
        try:
            Path(own).write_text(text, encoding="utf-8")
        except OSError as error:
            raise type(error)(error.errno, error.strerror, own) from error
    else:
        write_bytes(path, text.encode())


def output_names(paths: Sequence[PathLike]) -> list[str]:
    """Return a name for each path: its stem, numbered if an earlier path has the same stem.

    Case is ignored, as in some file systems.
    """
    stems = [Path(path).stem for path in paths]
    names = Names(stems)
    return [names.new(stem) for stem in stems]


class Names:
    """Makes names different by numbers, never those of `reserved` that are still to come."""

    def __init__(self, reserved: Sequence[str] = ()) -> None:
        self._reserved = {name.casefold() for name in reserved}
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}

    def new(self, stem: str) -> str:
        """Return `stem`, or ``stem-2``, ... if it is taken; case is ignored."""
        name, key = stem, stem.casefold()
        while name.casefold() in self._taken or (
            name != stem and name.casefold() in self._reserved
        ):
            self._numbers[key] = self._numbers.get(key, 1) + 1
            name = f"{stem}-{self._numbers[key]}"
        self._taken.add(name.casefold())
        return name


def refuse_replacing(inputs: Sequence[PathLike], outputs: Sequence[PathLike]) -> None:
    """Raise InputError when an output would replace one of the inputs."""
    taken = set(map(os.path.realpath, outputs))
    for path in inputs:
        if os.path.realpath(path) in taken:
            raise InputError(f"{path}: would be replaced by an output; choose another place")


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
