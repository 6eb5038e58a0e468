"""IDX files, plain or gzip'd: the format of MNIST and its descendants.

Two zero bytes, a type byte, the number of dimensions, each dimension as a big-endian u32, data
(LeCun, Cortes and Burges, "The MNIST database of handwritten digits").
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from io import BufferedReader
from pathlib import Path

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.errors import reason, show

LIMIT = 4 << 30  # bytes of an array that are read at most
DEFLATE_RATIO = 1032  # deflate cannot do better: a header that promises more lies
_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_CHUNK = 1 << 20
_Stream = BufferedReader | gzip.GzipFile


def read_idx(path: Path, limit: int = LIMIT) -> np.ndarray:
    """The array of an IDX file in the machine's byte order.

    Raises DataError: E601 no such file, E602 unreadable, E603 not IDX, truncated, longer than its
    header says, or larger than `limit` bytes. Nothing large is allocated on a header's word.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not packed:
                return _read(path, file, size, limit)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read(path, unpacked, size * DEFLATE_RATIO, limit)
    except FileNotFoundError:
        raise missing(path) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(path, f"its compressed data is broken ({show(error)})") from None
    except OSError as error:
        raise DataError("E602", f"cannot read {show(path)}: {reason(error)}") from None


def write_idx(array: np.ndarray) -> bytes:
    """A uint8 array as the bytes of an IDX file."""
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return head + np.ascontiguousarray(array, np.uint8).tobytes()


def missing(path: Path, what: str = "file") -> DataError:
    """The error for a file or folder that is not there."""
    return DataError(
        "E601",
        f"there is no {what} {show(path)}",
        "check the spelling; relative paths start at the folder of the recipe's file",
    )


def damaged(path: Path, why: str) -> DataError:
    """The error for a file that is not what it claims to be."""
    return DataError("E603", f"{show(path)}: {why}", "fetch or make the file again")


def _read(path: Path, file: _Stream, possible: int, limit: int) -> np.ndarray:
    """`possible` is the most bytes that the file can hold."""
    kind, shape = _header(path, file)
    needed = math.prod(shape) * kind.itemsize
    if needed > limit:
        raise damaged(path, f"its header claims {needed:,} bytes; at most {limit:,} are read")
    if needed > possible:
        raise damaged(path, f"its header claims {needed:,} bytes, which the file cannot hold")
    parts, left = [], needed + 1
    while left > 0 and (part := file.read(min(left, _CHUNK))):
        parts.append(part)
        left -= len(part)
    data = b"".join(parts)
    if len(data) != needed:
        few = "more" if len(data) > needed else f"only {len(data):,}"
        raise damaged(path, f"its header claims {needed:,} bytes of data, it has {few}")
    return np.frombuffer(data, kind).reshape(shape).astype(kind.newbyteorder("="))


def _header(path: Path, file: _Stream) -> tuple[np.dtype, tuple[int, ...]]:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or not 1 <= head[3] <= 8:
        raise damaged(path, "it is not an IDX file")
    sizes = file.read(4 * head[3])
    if len(sizes) != 4 * head[3]:
        raise damaged(path, "its header is cut short")
    return np.dtype(_TYPES[head[2]]), struct.unpack(f">{head[3]}I", sizes)
