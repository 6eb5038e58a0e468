"""Checkpoints: what a training run needs to go on to the same bits, and durable writing.

A checkpoint is one safetensors file: weights, running statistics and optimizer state by key, and
in its metadata the `State` as JSON and the sha256 of state and tensors. It is written to a
temporary file in the same folder, synced, read back, renamed, and the folder synced. The folder
of a run holds `last.safetensors`, the one before it and, where asked for, the best.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import shlex
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from lamina.runtime.data.vocabulary import Vocabulary, as_plain, from_plain
from lamina.runtime.errors import Failure, reason, show

FORMAT = 3
LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"
CODES: dict[str, str] = {
    "E701": "no checkpoint or weights",
    "E702": "damaged checkpoint",
    "E703": "weights do not fit the model",
    "E704": "cannot write",
    "E705": "checkpoint of a newer version",
    "E706": "damaged weights file",
    "E707": "checkpoint of another recipe",
}
_HEADER = 64 << 20  # bytes of a safetensors header at most
_LISTED = 4  # differing keys named in a message
_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?",
}


class CheckpointError(Failure):
    """A checkpoint or weights file that is missing, damaged, unfit or not writable (E70x)."""


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands.

    `step`: training steps done in all; `phase`: index of the current phase, `phase_step`: steps
    done in it; `epoch`: epochs done in all; `position`: batches done in the current epoch (all of
    them: its evaluation is due); `sums`: of each figure over `examples` of the current epoch, or
    over that many tokens where tokens weigh; `best`: the best value of the kept metric so far
    (None: none yet) and `best_epoch` its epoch; `length`: examples of the training data;
    `classes`: their names, where the data names them; `vocabularies`: those of its texts by field.
    """

    model: str
    recipe: str
    facts: tuple[tuple[str, str], ...]
    seed: int
    step: int = 0
    phase: int = 0
    phase_step: int = 0
    epoch: int = 0
    position: int = 0
    examples: int = 0
    sums: tuple[tuple[str, float], ...] = ()
    best: float | None = None
    best_epoch: int = 0
    version: str = ""
    length: int = 0
    classes: tuple[str, ...] = ()
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint; `warning` says what a user should be told, or is empty."""

    state: State
    params: dict[str, np.ndarray]
    path: Path
    warning: str = ""


def save_last(folder: Path, state: State, params: Mapping[str, np.ndarray]) -> Path:
    """Write the last checkpoint and keep the one before it; E704 leaves both loadable."""
    path = folder / LAST
    temporary = _written(path, encode(state, params))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, folder / PREVIOUS)
        os.replace(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise _cannot_write(path, error) from error
    return path


def set_aside(folder: Path) -> None:
    """Rename a damaged last checkpoint, so that it does not take the place of the one before."""
    with contextlib.suppress(OSError):
        os.replace(folder / LAST, folder / f"damaged-{LAST}")


def save_best(folder: Path, state: State, params: Mapping[str, np.ndarray]) -> Path:
    """Write the best checkpoint; E704 leaves the one before it."""
    return write_durable(folder / BEST, encode(state, params))


def write_durable(path: Path, data: bytes) -> Path:
    """Replace the file by `data`, or raise CheckpointError E704 and leave it as it was."""
    temporary = _written(path, data)
    try:
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise _cannot_write(path, error) from error
    return path


def load_last(folder: Path) -> Checkpoint:
    """The last checkpoint, or the one before it with a warning.

    Raises CheckpointError: E701 none at all, E702 both damaged, E705 of a newer version.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    try:
        return load(last)
    except CheckpointError as error:
        if error.code == "E705" or not previous.exists():
            raise
        first = error
    try:
        found = load(previous)
    except CheckpointError as error:
        raise CheckpointError(
            "E702", f"{first.message}; {error.message}",
            f"start again, or from weights in {BEST} if it is there",
        ) from None
    return dataclasses.replace(
        found, warning=f"{first.message}; going on from the one before it, {show(previous)}"
    )


def load(path: Path) -> Checkpoint:
    """The checkpoint in a file; raises CheckpointError E701, E702 or E705."""
    data = _bytes(path, "E702")
    try:
        metadata = _metadata(data)
        text, digest = metadata["lamina.state"], metadata["lamina.sha256"]
        newer = json.loads(text).get("format", 0)
    except _MALFORMED as error:
        raise _damaged(path, f"it is not a checkpoint ({_short(error)})") from None
    if isinstance(newer, int) and newer > FORMAT:
        raise CheckpointError("E705", f"{show(path)} was written by a newer version of Lamina",
                              "update Lamina")
    try:
        tensors = _tensors(data)
        if _digest(text, tensors) != digest:
            raise ValueError("its checksum does not match")
        return Checkpoint(_state(text), tensors, path)
    except _MALFORMED as error:
        raise _damaged(path, _short(error)) from None


def load_weights(path: Path) -> dict[str, np.ndarray]:
    """The tensors of any safetensors file by key; bf16 becomes float32.

    Raises CheckpointError E701 (no such file) or E706 (damaged). Checkpoints lose the optimizer's
    state and must match their checksum.
    """
    data = _bytes(path, "E706")
    try:
        tensors = _tensors(data)
        metadata = _metadata(data)
    except _MALFORMED as error:
        raise CheckpointError("E706", f"{show(path)} is not a sound safetensors file "
                              f"({_short(error)})", "fetch or make the file again") from None
    if "lamina.state" in metadata:
        tensors = load(path).params
    return {key: value for key, value in tensors.items() if not key.startswith("optimizer/")}


def require_fit(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], place: str
) -> None:
    """CheckpointError E703 naming keys, shapes and types of `found` that differ from `wanted`."""
    lost = [f"`{show(key)}` is missing" for key in wanted if key not in found]
    extra = [f"`{show(key)}` is not in the model" for key in found if key not in wanted]
    changed = [
        f"`{show(key)}` is {_kind(found[key])}, the model's is {_kind(value)}"
        for key, value in wanted.items()
        if key in found and _kind(found[key]) != _kind(value)
    ]
    differences = [*changed, *lost, *extra]
    if differences:
        more = len(differences) - _LISTED
        listed = "; ".join(differences[:_LISTED]) + (f"; and {more} more" if more > 0 else "")
        raise CheckpointError("E703", f"{show(place)} does not fit the model: {listed}",
                              "use the model that it was trained with, or start afresh")


def encode(state: State, params: Mapping[str, np.ndarray]) -> bytes:
    """A checkpoint's bytes, the same for the same state and parameters."""
    # ascontiguousarray would turn a scalar into a vector
    tensors = {key: np.asarray(params[key], order="C") for key in sorted(params)}
    plain = dataclasses.asdict(dataclasses.replace(state, vocabularies={}))
    plain["vocabularies"] = as_plain(state.vocabularies)
    text = json.dumps({"format": FORMAT, **plain}, separators=(",", ":"))
    metadata = {"lamina.sha256": _digest(text, tensors), "lamina.state": text}
    return _settled(safetensors.numpy.save(tensors, metadata))


_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError,
              MemoryError, struct.error, safetensors.SafetensorError)


def _settled(data: bytes) -> bytes:
    """The file with its header's metadata in the order of keys (the library's order varies)."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _written(path: Path, data: bytes) -> Path:
    """`data` in a synced and verified temporary file beside `path`; E704 removes it again."""
    if path.is_dir():  # also `.`, which has no name
        raise _cannot_write(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    temporary = path.with_name(path.name + ".part")
    try:
        _write_file(temporary, data)
        if _read_file(temporary) != data:
            raise OSError(0, "what was written cannot be read back unchanged")
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise _cannot_write(path, error) from error
    return temporary


def _write_file(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(data)
        while view:
            count = os.write(handle, view[: 1 << 30])
            if count <= 0:
                raise OSError(0, "nothing could be written")
            view = view[count:]
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_file(path: Path) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        return file.read()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError("E704", f"cannot write {show(path)}: {reason(error)}",
                           _way_out(path, error))


def _way_out(path: Path, error: OSError) -> str:
    """What to do about a file that cannot be written."""
    if error.errno == errno.EISDIR:
        return "give the name of a file: this is a folder"
    if error.errno == errno.ENOENT:
        return f"make the folder first: mkdir -p {shlex.quote(show(path.parent))}"
    if error.errno == errno.ENOTDIR:
        return f"choose another folder: {show(path.parent)} is none"
    return "make room or choose another folder; what was saved before is still there"


def _bytes(path: Path, code: str) -> bytes:
    try:
        return _read_file(path)
    except FileNotFoundError:
        raise CheckpointError("E701", f"there is no {show(path)}") from None
    except OSError as error:
        raise CheckpointError(code, f"cannot read {show(path)}: {reason(error)}") from None


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError("E702", f"{show(path)} is damaged: {why}")


def _short(error: Exception) -> str:
    return show(error) or type(error).__name__


def _metadata(data: bytes) -> dict[str, str]:
    """The header's metadata; raises one of _MALFORMED."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_HEADER, len(data) - 8):
        raise ValueError("it is cut short")
    header = json.loads(data[8 : 8 + length].decode())
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is malformed")
    return metadata


def _tensors(data: bytes) -> dict[str, np.ndarray]:
    """The tensors; the library checks that header and data agree. Raises one of _MALFORMED."""
    tensors = {}
    for key, info in safetensors.deserialize(data):
        if info["dtype"] not in _TYPES:
            raise ValueError(f"tensor {key} has type {info['dtype']}, which is not supported")
        array = np.frombuffer(info["data"], np.dtype(_TYPES[info["dtype"]]))
        if info["dtype"] == "BF16":
            array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        tensors[key] = array.reshape(info["shape"])
    return tensors


def _digest(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    total = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        value = tensors[key]
        total.update(json.dumps([key, value.dtype.str, value.shape]).encode())
        total.update(value.tobytes())
    return total.hexdigest()


def _state(text: str) -> State:
    values = json.loads(text)
    del values["format"]
    values["sums"] = tuple((name, float(total)) for name, total in values["sums"])
    values.pop("fingerprint", None)  # what format 1 had in their place
    values["facts"] = tuple((str(name), str(text)) for name, text in values.get("facts", ()))
    values["classes"] = tuple(map(str, values["classes"]))
    values["vocabularies"] = from_plain(values.get("vocabularies", ()))
    state = State(**values)
    counts = (state.step, state.phase, state.phase_step, state.epoch, state.position)
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("its counters make no sense")
    return state


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"


def all_finite(params: Mapping[str, np.ndarray]) -> str:
    """The first key that holds a NaN or an infinity, or an empty text."""
    for key, value in params.items():
        # A sum is finite only if all terms are (or it overflowed): one pass without a mask.
        if value.dtype.kind == "f" and not math.isfinite(_total(value)) and not np.isfinite(
            value
        ).all():
            return key
    return ""


def _total(value: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return float(np.sum(value))
