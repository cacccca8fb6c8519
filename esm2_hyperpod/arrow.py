"""The two buffers of an Arrow binary or string array, as numpy sees them, and hashes of its values.

pyarrow's own `array`, `scalar` and `to_numpy` import pandas, which takes half a second; steps 0 and 1 do
without.
"""

import numpy as np
import pyarrow as pa

from esm2_hyperpod.hashing import key64, mix64

_POSITIONS = 64
_TABLE = mix64(np.arange(_POSITIONS * 256, dtype=np.uint64))
"""uint64[64 * 256]: a random word for each (position modulo 64, byte): tabulation hashing (Zobrist 1970)."""


def offsets_of(array: pa.Array) -> np.ndarray:
    """int32[n + 1]: where each value starts in the data buffer, and where the last one ends."""
    if not len(array):
        return np.zeros(1, dtype=np.int32)
    return np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array) + 1]


def values_of(array: pa.Array) -> np.ndarray:
    """uint8: the bytes of all values, one after the other."""
    offsets = offsets_of(array)
    if offsets[0] == offsets[-1]:
        return np.zeros(0, dtype=np.uint8)
    return np.frombuffer(array.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]]


def lengths_of(array: pa.Array) -> np.ndarray:
    """int64[n]: the bytes in each value."""
    return np.diff(offsets_of(array)).astype(np.int64)


def number_array(values: np.ndarray) -> pa.Array:
    """Arrow numbers[n] over the memory of a numpy array."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def binary_scalar(value: bytes) -> pa.Scalar:
    """One binary value."""
    return binary_array(value, np.array([0, len(value)], dtype=np.int32))[0]


def binary_array(values: object, offsets: np.ndarray) -> pa.Array:
    """Arrow binary[n] over a buffer and int32[n + 1] offsets, without a copy."""
    return pa.Array.from_buffers(
        pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(values)]
    )


def as_type(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """An Arrow binary or string array as the other of the two, without a copy and without validation."""
    return pa.Array.from_buffers(kind, len(array), array.buffers(), offset=array.offset)


def hash_ids(ids: pa.Array, seed: int) -> np.ndarray:
    """uint64[n]: a hash of each id's bytes and the seed. `ids` is Arrow binary or string, none null."""
    offsets, values = offsets_of(ids), values_of(ids)
    lengths, starts = np.diff(offsets), offsets[:-1] - offsets[0]
    positions = np.arange(len(values), dtype=np.int32) - np.repeat(starts, lengths)
    words = _TABLE[(positions % _POSITIONS) * 256 + values]
    sums = np.zeros(len(ids), dtype=np.uint64)
    filled = lengths > 0  # reduceat gives an empty slice its next element
    if filled.any():
        sums[filled] = np.add.reduceat(words, starts[filled])
    return mix64(sums ^ mix64(lengths.astype(np.uint64)) ^ key64(seed))
