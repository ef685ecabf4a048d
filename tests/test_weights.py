"""fcnfast's own weights files: written whole or not at all, read without running anything."""

import errno
import json
import os
import stat
import struct

import pytest
import safetensors.torch
import torch

from fcnfast.errors import WeightsError
from fcnfast.weights import WeightsMeta, files, write_weights
from tests.weights_tools import read_weights

META = WeightsMeta(
    model="street",
    options={"width": 8, "strides": [4, 8]},
    num_classes=2,
    classes=("road", "sky"),
    palette=((1, 2, 3), (255, 0, 128)),
    preprocess={"mean": [0.5, 0.25, 0.125]},
)
DESCRIBED = json.dumps({"format": 1, **vars(META)})


def some_tensors():
    generator = torch.Generator().manual_seed(3)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "norm.num_batches_tracked": torch.tensor(1234567, dtype=torch.int64),
        "empty": torch.zeros(0, 5),
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.safetensors"


def write(path, **changes):
    write_weights(path, some_tensors(), META, **changes)
    return path


def equal(found, wanted):
    pairs = [(found[name], value) for name, value in wanted.items()]
    return found.keys() == wanted.keys() and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs
    )


def test_what_is_written_is_read_back(path):
    """By us, and by the reference library, whose files are read, too."""
    tensors, meta = read_weights(write(path))
    assert meta == META and equal(tensors, some_tensors())
    assert equal(safetensors.torch.load_file(path), some_tensors())
    first = path.read_bytes()
    assert write(path).read_bytes() == first
    safetensors.torch.save_file(some_tensors(), path, {"fcnfast": DESCRIBED})
    tensors, meta = read_weights(path)
    assert meta == META and equal(tensors, some_tensors())


def test_float16_halves_the_floats_and_leaves_integers(path):
    tensors, _ = read_weights(write(path, dtype=torch.float16))
    halves = {k: v.half() if v.is_floating_point() else v for k, v in some_tensors().items()}
    assert equal(tensors, halves)


def test_shared_and_strided_tensors_are_written_as_their_values(path):
    base = torch.arange(24.0).reshape(1, 2, 3, 4)
    state = {"a": base, "b": base, "c": base[..., ::2], "d": base.transpose(2, 3)}
    state["e"] = base.to(memory_format=torch.channels_last)
    write_weights(path, state, META)
    assert equal(read_weights(path)[0], state)


def test_what_cannot_be_stored_is_refused(path):
    for state, dtype, changes, error, message in (
        ({"a": [1.0]}, None, {}, TypeError, "'a' must be a tensor, not list"),
        ({}, torch.int8, {}, TypeError, "torch.int8"),
        ({"a": torch.tensor([1.0, 7e4])}, torch.float16, {}, ValueError, "'a'.*float16"),
        ({}, None, {"model": ""}, ValueError, "model"),
        ({}, None, {"num_classes": 0}, ValueError, "num_classes"),
        ({}, None, {"num_classes": 3}, ValueError, "2 entries for 3"),
        ({}, None, {"classes": ("road", 5)}, ValueError, "5"),
        ({}, None, {"palette": ((0, 0, 0), (0, 0, 256))}, ValueError, "256"),
        ({}, None, {"options": ["width"]}, ValueError, "options"),
    ):
        with pytest.raises(error, match=message):
            write_weights(path, state, WeightsMeta(**{**vars(META), **changes}), dtype=dtype)
        assert not path.exists()


def test_a_full_disk_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = write(path).read_bytes()

    def no_room(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def not_written(*_):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left")

    for module, name, function in ((os, "fsync", no_room), (files, "save_file", not_written)):
        monkeypatch.setattr(module, name, function)
        with pytest.raises(OSError, match="No space left") as raised:
            write(path, dtype=torch.float16)
        assert raised.value.filename == str(path)
        assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
        monkeypatch.undo()


def test_places_that_cannot_be_written_or_read(path, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / path.name)
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "missing" / path.name)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        write(tmp_path / "pipe")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "pipe"}
    for place, says in ((tmp_path / "pipe", "not a regular file"), (tmp_path, "is a folder"),
                        (path, "w.safetensors: no such")):  # fmt: skip
        with pytest.raises(WeightsError, match=says):
            read_weights(place)


def test_permissions_are_those_of_any_new_file_or_of_the_old_one(path, tmp_path):
    (tmp_path / "plain").touch()
    assert write(path).stat().st_mode == (tmp_path / "plain").stat().st_mode
    path.chmod(0o640)
    assert stat.S_IMODE(write(path).stat().st_mode) == 0o640
    (tmp_path / "link").symlink_to(tmp_path / "real")  # a link is followed
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert read_weights(tmp_path / "real")[1] == META


def test_a_header_whose_length_looks_like_a_pickle_is_read(path):
    # 80 02 is both the mark of pickle protocol 2 and the number 640.
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps({**header, "__metadata__": {"fcnfast": DESCRIBED}}).encode()
    content = struct.pack("<Q", 640) + text.ljust(640) + bytes(4)
    assert len(text) <= 640 and content[:2] == b"\x80\x02"
    path.write_bytes(content)
    assert read_weights(path)[1] == META


def test_damaged_descriptions_are_refused(path):
    for described, message in (
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 99}', "format 99"),
        ('{"format": 1, "model": "m"}', "classes"),
        (json.dumps({**json.loads(DESCRIBED), "num_classes": 3}), "2 entries for 3"),
        (json.dumps({**json.loads(DESCRIBED), "palette": [7]}), "damaged"),
    ):
        safetensors.torch.save_file({"a": torch.ones(2)}, path, {"fcnfast": described})
        with pytest.raises(WeightsError, match=message):
            read_weights(path)


def test_damaged_headers_are_refused(path):
    for tensors in (
        '"a": 5}',
        '"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}',
        '"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}',
        "not json",
        '"a":' + '{"a":' * 5000,
    ):
        header = f'{{"__metadata__": {{"fcnfast": {json.dumps(DESCRIBED)}}}, {tensors}'.encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        with pytest.raises(WeightsError, match="damaged"):
            read_weights(path)
