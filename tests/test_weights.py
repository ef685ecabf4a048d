"""fcnfast's own weights files: written whole or not at all, read without running anything."""

import errno
import json
import os
import pickle
import stat
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fcnfast.errors import WeightsError
from fcnfast.weights import (
    WeightsMeta,
    bundled_path,
    files,
    open_weights,
    read_weights,
    write_weights,
)

META = WeightsMeta(
    model="street",
    options={"width": 8, "strides": [4, 8]},
    num_classes=2,
    classes=("road", "sky"),
    palette=((1, 2, 3), (255, 0, 128)),
    preprocess={"mean": [0.5, 0.25, 0.125]},
)


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "norm.num_batches_tracked": torch.tensor(1234567, dtype=torch.int64),
        "empty": torch.zeros(0, 5),
    }


def write(path: Path, **changes: object) -> Path:
    write_weights(path, some_tensors(), META, **changes)
    return path


class MakesFile:
    """Unpickling one of these creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def test_what_is_written_is_read_back(tmp_path):
    tensors, meta = read_weights(write(tmp_path / "w.safetensors"))
    assert meta == META
    assert tensors.keys() == some_tensors().keys()
    for name, tensor in some_tensors().items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_the_reference_library_reads_what_is_written(tmp_path):
    tensors = safetensors.torch.load_file(write(tmp_path / "w.safetensors"))
    assert tensors.keys() == some_tensors().keys()
    assert all(torch.equal(tensors[name], value) for name, value in some_tensors().items())


def test_what_the_reference_library_writes_is_read(tmp_path):
    described = json.dumps({"format": 1, **vars(META)})
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(some_tensors(), path, {"fcnfast": described})
    tensors, meta = read_weights(path)
    assert meta == META
    assert all(torch.equal(tensors[name], value) for name, value in some_tensors().items())


def test_float16_halves_the_floats_and_leaves_integers(tmp_path):
    tensors, _ = read_weights(write(tmp_path / "w.safetensors", dtype=torch.float16))
    source = some_tensors()
    assert tensors["conv.weight"].dtype == torch.float16
    assert torch.equal(tensors["conv.weight"], source["conv.weight"].half())
    assert tensors["norm.num_batches_tracked"].dtype == torch.int64
    assert tensors["norm.num_batches_tracked"] == 1234567


def test_shared_and_strided_tensors_are_written_as_their_values(tmp_path):
    base = torch.arange(24.0).reshape(1, 2, 3, 4)
    state = {"a": base, "b": base, "c": base[..., ::2], "d": base.transpose(2, 3)}
    state["e"] = base.to(memory_format=torch.channels_last)
    write_weights(tmp_path / "w", state, META)
    tensors, _ = read_weights(tmp_path / "w")
    assert all(torch.equal(tensors[name], state[name]) for name in state)


def test_a_value_too_large_for_float16_is_named(tmp_path):
    state = {"fine": torch.ones(2), "huge": torch.tensor([1.0, 7e4])}
    with pytest.raises(ValueError, match="'huge'.*float16"):
        write_weights(tmp_path / "w", state, META, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_the_same_content_gives_the_same_bytes(tmp_path):
    assert write(tmp_path / "a").read_bytes() == write(tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("state", "dtype", "message"),
    [({"a": [1.0]}, None, "'a' must be a tensor, not list"), ({}, torch.int8, "torch.int8")],
)
def test_what_cannot_be_stored_is_refused(tmp_path, state, dtype, message):
    with pytest.raises(TypeError, match=message):
        write_weights(tmp_path / "w", state, META, dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "model"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 3}, "2 entries for 3"),
        ({"classes": ("road", 5)}, "5"),
        ({"palette": ((0, 0, 0), (0, 0, 256))}, "256"),
        ({"options": ["width"]}, "options"),
    ],
)
def test_contradictory_descriptions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        WeightsMeta(**{**vars(META), **changes})


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write(tmp_path / "w.safetensors")
    before = path.read_bytes()

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space left") as raised:
        write(path, dtype=torch.float16)
    assert raised.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_safetensors_cannot_write_is_an_os_error(tmp_path, monkeypatch):
    def no_room(*_: object) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left")

    monkeypatch.setattr(files, "save_file", no_room)
    with pytest.raises(OSError, match="No space left") as raised:
        write(tmp_path / "w.safetensors")
    assert raised.value.filename == str(tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "w.safetensors")
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "missing" / "w.safetensors")


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        write(tmp_path / "pipe")
    assert list(tmp_path.iterdir()) == [tmp_path / "pipe"]
    with pytest.raises(WeightsError, match="not a regular file"):
        read_weights(tmp_path / "pipe")


def test_permissions_are_those_of_any_new_file_or_of_the_old_one(tmp_path):
    (tmp_path / "plain").touch()
    write(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    write(tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert read_weights(tmp_path / "real")[1] == META


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(WeightsError, match="nothing.safetensors: no such"):
        read_weights(tmp_path / "nothing.safetensors")
    with pytest.raises(WeightsError, match="is a folder"):
        read_weights(tmp_path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    content = write(tmp_path / "w.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in [*range(0, len(content), 37), len(content) - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"cut\.safetensors: ") as raised:
            read_weights(cut)
        if length > 8:
            assert "is cut" in str(raised.value)


@pytest.mark.parametrize("kind", ["protocol 0", "protocol 2", "torch.save", "legacy", "cut"])
def test_a_pickle_is_never_run(tmp_path, kind):
    target, path = tmp_path / "made-by-the-pickle", tmp_path / "w.safetensors"
    payload = {"state": MakesFile(target)}
    if kind.startswith("protocol"):
        path.write_bytes(pickle.dumps(payload, protocol=int(kind[-1])))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(WeightsError, match=r"w\.safetensors: not a safetensors weights file"):
        read_weights(path)
    with pytest.raises(WeightsError, match=r"w\.safetensors: "), open_weights(path):
        pass
    assert not target.exists()


def test_the_pickles_of_that_test_do_run_when_they_are_loaded(tmp_path):
    pickle.loads(pickle.dumps(MakesFile(tmp_path / "made"))).close()
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content",
    [b"hello, these are no weights\n", b"\0" * 100, b"PK\x03\x04 and the rest", b"\x89PNG\r\n"],
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(WeightsError, match="w: not a safetensors"):
        read_weights(tmp_path / "w")


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    # 80 02 is both the mark of pickle protocol 2 and the number 640.
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header["__metadata__"] = {"fcnfast": json.dumps({"format": 1, **vars(META)})}
    text = json.dumps(header).encode()
    content = struct.pack("<Q", 640) + text.ljust(640) + bytes(4)
    assert len(text) <= 640 and content[:2] == b"\x80\x02"
    (tmp_path / "w").write_bytes(content)
    assert read_weights(tmp_path / "w")[1] == META


def test_foreign_safetensors_are_refused(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "w", {"format": "pt"})
    with pytest.raises(WeightsError, match="not of fcnfast"):
        read_weights(tmp_path / "w")


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 99}', "format 99"),
        ('{"format": 1, "model": "m"}', "classes"),
        (
            '{"format": 1, "model": "m", "options": {}, "num_classes": 3, "classes": ["a"],'
            ' "palette": [], "preprocess": {}}',
            "1 entries for 3",
        ),
        (
            '{"format": 1, "model": "m", "options": {}, "num_classes": 3, "classes": [],'
            ' "palette": [7], "preprocess": {}}',
            "damaged",
        ),
    ],
)
def test_damaged_descriptions_are_refused(tmp_path, described, message):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "w", {"fcnfast": described})
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / "w")


@pytest.mark.parametrize(
    "header",
    [
        b"{not json",
        b'{"a": 5}',
        b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a":' * 5000,
    ],
)
def test_damaged_headers_are_refused(tmp_path, header):
    described = json.dumps({"format": 1, **vars(META)}).encode()
    if header.endswith(b"}}"):
        header = (
            b'{"__metadata__": {"fcnfast": '
            + json.dumps(described.decode()).encode()
            + (b"}, " + header[1:])
        )
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(WeightsError, match="damaged"):
        read_weights(tmp_path / "w")


def test_the_bundled_path_is_inside_the_package():
    import fcnfast

    assert bundled_path().is_relative_to(Path(fcnfast.__file__).parent)
    assert bundled_path().suffix == ".safetensors"
