"""Arrays from .npz archives, without pickle and without trusting their headers."""

from __future__ import annotations

import ast
import errno
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lamina.runtime.data.errors import DataError
from lamina.runtime.data.idx import DEFLATE_RATIO, LIMIT, damaged, missing
from lamina.runtime.errors import did_you_mean, reason, show

_PACKING = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError,
           RuntimeError, SyntaxError, TypeError, tokenize.TokenError, KeyError, OverflowError,
           MemoryError, RecursionError)


def read_npz(path: Path, names: Mapping[str, str], limit: int = LIMIT) -> dict[str, np.ndarray]:
    """Arrays of the archive: `names` gives for each field the array's name in the archive.

    Raises DataError: E601 no such file or array, E602 unreadable, E603 damaged, lying about its
    sizes, holding Python objects, or larger than `limit` bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            for name in names.values():
                if name not in held:
                    message = f"{show(path)} has no array `{show(name)}`"
                    raise DataError("E601", message, did_you_mean(name, map(show, held)))
            return {f: _member(path, archive, held[name], limit) for f, name in names.items()}
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # an offset in the archive led before its start
            raise damaged(path, "it is not a sound .npz archive") from None
        raise DataError("E602", f"cannot read {show(path)}: {reason(error)}") from None
    except _BROKEN as error:
        raise damaged(path, f"it is not a sound .npz archive ({show(error)})") from None


def _member(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int
) -> np.ndarray:
    """One array; its sizes are compared before anything is unpacked."""
    name = show(info.filename)
    possible = min(info.compress_size, os.path.getsize(path)) * DEFLATE_RATIO
    if info.compress_type not in _PACKING or info.flag_bits & 1:
        raise damaged(path, f"array {name} is packed in a way that is not supported")
    if info.file_size > min(limit, possible):
        raise damaged(path, f"array {name} claims {info.file_size:,} bytes, too many to be true")
    with archive.open(info) as file:
        kind, shape, fortran = _header(path, name, file)
        needed = math.prod(shape) * kind.itemsize
        if needed != info.file_size - file.tell():
            raise damaged(path, f"array {name} claims shape {shape}, which its size belies")
        data = file.read()
    array = np.frombuffer(data, kind)
    flipped = array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
    return np.asarray(flipped, kind.newbyteorder("="), order="C")


def _header(path: Path, name: str, file) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Type, shape and order of a .npy member; the header is a Python literal, only parsed."""
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:7] not in (b"\1", b"\2", b"\3"):
        raise damaged(path, f"{name} is not an array")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > 10_000:
        raise damaged(path, f"array {name} has a header of {length:,} bytes")
    head = ast.literal_eval(file.read(length).decode("latin1").strip())
    if not isinstance(head, dict) or not isinstance(head.get("descr"), str):
        raise damaged(path, f"array {name} does not hold plain numbers")
    kind, shape = np.dtype(head["descr"]), head["shape"]
    if kind.kind not in "biuf" or kind.itemsize > 8:
        raise damaged(path, f"array {name} does not hold plain numbers")
    sizes = isinstance(shape, tuple) and all(type(s) is int and s >= 0 for s in shape)
    if not sizes or len(shape) > 16:
        raise damaged(path, f"array {name} has no proper shape")
    return kind, shape, head["fortran_order"] is True
