"""Caffe's model files from raw bytes: nothing of the reader, nothing of protobuf's package.

A field of a message is a tag, 8 * number + kind, then its content: kind 0 a variable-length
integer, 2 a length and bytes, 1 and 5 eight and four bytes.
"""

import struct

import h5py
import numpy as np


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number % 128 + 128)
        number //= 128
    return bytes([*out, number])


def message(number, content):
    return varint(8 * number + 2) + varint(len(content)) + content


def integer(number, value):
    return varint(8 * number) + varint(value)


def numbers(values, packed=True, double=False):
    """A blob's `data` (5) or `double_data` (8)."""
    field, kind, code = (8, 1, "d") if double else (5, 5, "f")
    flat = values.double().flatten().numpy()
    if packed:
        return message(field, flat.astype(f"<{code}").tobytes())
    return b"".join(varint(8 * field + kind) + struct.pack(f"<{code}", v) for v in flat)


def shape_of(values, legacy=False, packed=True):
    """A blob's `shape` (7), or the four sizes of old (1 to 4), right-aligned."""
    if legacy:
        sizes = (1, 1, 1, 1, *values.shape)[-4:]
        return b"".join(integer(k, size) for k, size in enumerate(sizes, 1))
    if packed:
        return message(7, message(1, b"".join(varint(size) for size in values.shape)))
    return message(7, b"".join(integer(1, size) for size in values.shape))


def blob(values, packed=True, legacy=False, double=False):
    """Numbers may come before the shape: fields have no order."""
    gradient = message(6, bytes(4)) if packed else b""  # `diff`, which is not wanted
    return numbers(values, packed, double) + shape_of(values, legacy, packed) + gradient


def layer_v2(name, kind, blobs):
    content = message(1, name.encode()) + message(2, kind.encode()) + message(3, b"data")
    return message(100, content + b"".join(message(7, b) for b in blobs) + integer(10, 1))


def layer_v1(name, kind, blobs):
    rates = varint(8 * 7 + 5) + struct.pack("<f", 1.0)
    content = message(2, b"data") + message(4, name.encode()) + integer(5, kind) + rates
    return message(2, content + b"".join(message(6, b) for b in blobs))


def layer_v0(name, kind, blobs):
    inner = message(1, name.encode()) + message(2, kind.encode())
    inner += b"".join(message(50, b) for b in blobs)
    return message(2, message(1, inner) + message(2, b"data"))


def by_layer(state):
    """Weight and bias of every layer."""
    layers = {}
    for key, value in state.items():
        layers.setdefault(key.rpartition(".")[0], []).append(value)
    return layers


def caffe_messages(state, generation=2, packed=True, legacy=False, double=False, flat=()):
    """The fields of a whole model; layers named in `flat` are fully connected ones, O x C*h*w."""
    content = [message(1, b"a net"), message(3, b"data"), integer(5, 0)]
    names = {2: "Convolution", 1: 4, 0: "conv"}
    write = {2: layer_v2, 1: layer_v1, 0: layer_v0}[generation]
    for name, values in by_layer(state).items():
        values = [v.flatten(1) if name in flat and v.dim() > 1 else v for v in values]
        blobs = [blob(v, packed, legacy, double) for v in values]
        content.append(write(name, names[generation], blobs))
        content.append(write(f"relu_{name}", names[generation], []))  # layers without blobs, too
    return content


def caffemodel(state, **layout):
    return b"".join(caffe_messages(state, **layout))


def hdf5_model(path, state):
    """Caffe's HDF5: data/LAYER/0, data/LAYER/1."""
    with h5py.File(path, "w") as file:
        for name, values in by_layer(state).items():
            for index, value in enumerate(values):
                file[f"data/{name}/{index}"] = value.numpy().astype(np.float32)
