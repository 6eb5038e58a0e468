"""Checkpoints: whatever happens to the disk, the file or the process, an old one stays loadable."""

import errno
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from lamina.runtime import checkpoint, logs
from lamina.runtime.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    CheckpointError,
    State,
    all_finite,
    encode,
    load,
    load_last,
    load_weights,
    require_fit,
    save_best,
    save_last,
    write_durable,
)

STATE = State("LeNet5", "digits", (("model", "abc"),), 1998, 7, 1, 3, 2, 5, 160,
              (("loss", 0.1 + 0.2),), 0.75, 2)


def params(value=1.0):
    return {
        "head.weight": np.arange(6, dtype=np.float32).reshape(2, 3) * np.float32(value),
        "bn.count": np.array(3, np.int32),
        "empty": np.zeros((0, 4), np.float32),
        "optimizer/head.weight": np.full((2, 3), value, np.float32).T.copy().T,
    }


def same(found, wanted):
    return found.keys() == wanted.keys() and all(
        found[k].dtype == v.dtype and np.array_equal(found[k], v) and found[k].shape == v.shape
        for k, v in wanted.items()
    )


def code_of(call, *args):
    with pytest.raises(CheckpointError) as caught:
        call(*args)
    return caught.value.code


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    """State, tensors of every shape and the numbers in between; other tools can read the file."""
    save_last(tmp_path, STATE, params())
    found = load_last(tmp_path)
    assert found.state == STATE and same(found.params, params()) and not found.warning
    assert same(safetensors.numpy.load_file(tmp_path / LAST), params())
    assert encode(STATE, params()) == encode(STATE, dict(reversed(params().items())))


def test_the_last_two_and_the_best_are_kept(tmp_path):
    """A third save replaces the first; no temporary file stays."""
    for step in (1, 2, 3):
        save_last(tmp_path, replace(STATE, step=step), params(step))
    save_best(tmp_path, replace(STATE, step=2), params(2))
    steps = {name: load(tmp_path / name).state.step for name in (LAST, PREVIOUS, BEST)}
    assert steps == {LAST: 3, PREVIOUS: 2, BEST: 2}
    assert len(list(tmp_path.iterdir())) == 3


def test_truncated_at_every_byte_or_any_bit_flipped(tmp_path):
    """No damage goes unseen, and none is worse than a clear error."""
    data = encode(STATE, params())
    path = tmp_path / LAST
    for end in range(len(data)):
        path.write_bytes(data[:end])
        assert code_of(load, path) == "E702", end
    path.write_bytes(data + b"\0")
    assert code_of(load, path) == "E702"
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert code_of(load, path) in ("E702", "E705"), bit
        if bit % 8 == 0:
            try:
                load_weights(path)
            except CheckpointError as error:
                assert error.code in ("E702", "E705", "E706")  # noqa: PT017


@pytest.mark.parametrize("header", [
    b"", b"[]", b"{", b'"x"', b"[" * 100_000, b'{"__metadata__":3}', b"\xff\xfe",
    b'{"a":{"dtype":"F32","shape":[9999999999,9999999999],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}',
    b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}',
    b'{"__metadata__":{"lamina.state":"{\\"format\\":1}","lamina.sha256":""}}',
    b'{"__metadata__":{"lamina.state":"[]","lamina.sha256":""}}',
])
def test_lying_headers(tmp_path, header):
    """A header can claim anything; only its own bytes are believed."""
    path = tmp_path / LAST
    for length in (len(header), 2**63, 0):
        path.write_bytes(length.to_bytes(8, "little") + header + bytes(4))
        assert code_of(load, path) == "E702"
        assert code_of(load_weights, path) in ("E702", "E706")


def test_a_damaged_last_falls_back_to_the_previous(tmp_path):
    """With a warning that names the damage; two damaged ones are an error that names both."""
    assert code_of(load_last, tmp_path) == "E701"
    for step in (1, 2):
        save_last(tmp_path, replace(STATE, step=step), params(step))
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:-1])
    found = load_last(tmp_path)
    assert found.state.step == 1 and "damaged" in found.warning and PREVIOUS in found.warning
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"{LAST}.*{PREVIOUS}") as caught:
        load_last(tmp_path)
    assert caught.value.code == "E702"


def test_a_newer_format_is_not_called_damage(tmp_path):
    """Nor does it fall back to an old checkpoint behind the user's back."""
    save_last(tmp_path, STATE, params())
    save_last(tmp_path, STATE, params())
    data = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(data.replace(b'\\"format\\":3', b'\\"format\\":4'))
    assert code_of(load_last, tmp_path) == "E705"


def test_weights_of_another_model_are_named():
    """Which key, which shape, which type: not just "mismatch"."""
    other = params()
    other["head.weight"] = other["head.weight"].T
    other["new\n"] = other.pop("empty")
    other["bn.count"] = other["bn.count"].astype(np.int64)
    with pytest.raises(CheckpointError) as caught:
        require_fit(other, params(), "best.safetensors")
    message = caught.value.message
    assert caught.value.code == "E703" and "\n" not in message
    for part in ("`head.weight` is float32[3, 2], the model's is float32[2, 3]",
                 "`bn.count` is int64[]", "`empty` is missing", "`new\\n` is not in the model"):
        assert part in message
    many = {f"k{i}": np.zeros(1) for i in range(50)}
    with pytest.raises(CheckpointError, match="and 46 more"):
        require_fit({}, many, "x")


def test_weights_from_any_safetensors_file(tmp_path):
    """bf16, which NumPy lacks, becomes float32; a checkpoint gives its weights alone."""
    values = np.array([1.0, -2.5, 0.0, 3.0], np.float32)
    half = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + half)
    assert np.array_equal(load_weights(tmp_path / "w")["w"], values.reshape(2, 2))
    safetensors.numpy.save_file({"a": values}, tmp_path / "plain")
    assert np.array_equal(load_weights(tmp_path / "plain")["a"], values)
    save_last(tmp_path, STATE, params())
    assert set(load_weights(tmp_path / LAST)) == {"head.weight", "bn.count", "empty"}
    assert code_of(load_weights, tmp_path / "none") == "E701"
    assert code_of(load_weights, tmp_path) == "E706"


def test_nan_is_found_and_overflow_is_not_nan():
    """A checkpoint of NaNs is worth nothing; large weights are not NaNs."""
    big = {"a": np.full(10, 3e38, np.float32), "n": np.arange(3)}
    assert all_finite(big) == ""
    for bad in (np.nan, np.inf, -np.inf):
        assert all_finite({**big, "b": np.array([1, bad], np.float32)}) == "b"


# --- failing disks --------------------------------------------------------------------------------


class Power(BaseException):
    """The process ends here: nothing below `except Exception` or `finally: unlink` matters."""


class Faulty:
    """`os`, whose n-th call of the kinds that can fail does fail; later ones work again."""

    def __init__(self, at, error, kinds=("open", "write", "fsync", "replace", "unlink", "close")):
        self.at, self.error, self.kinds, self.count, self.dead = at, error, kinds, 0, False

    def __getattr__(self, name):
        real = getattr(os, name)
        return (lambda *args: self.call(name, real, args)) if name in self.kinds else real

    def call(self, name, real, args):
        if self.dead:
            raise Power
        self.count += 1
        if self.count != self.at:
            return real(*args)
        if self.error == "short" and name == "write":
            return real(args[0], args[1][:7])
        if self.error == "power":
            if name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            self.dead = name != "close"
            raise Power
        if name == "close":
            real(*args)
        if self.error == "short":
            return None if name == "close" else real(*args)
        raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, "short", "power"])
@pytest.mark.parametrize("saves", [0, 1, 2])
def test_every_call_may_fail(tmp_path, monkeypatch, error, saves):
    """After any failure the old or the new checkpoint loads, and the next save works."""
    for at in range(1, 100):
        folder = tmp_path / str(at)
        folder.mkdir()
        for step in range(saves):
            save_last(folder, replace(STATE, step=step), params(step))
        faulty = Faulty(at, error)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "os", faulty)
            try:
                save_last(folder, replace(STATE, step=9), params(9))
                outcome = "saved"
            except (CheckpointError, Power) as failure:
                outcome = getattr(failure, "code", "power")
        if faulty.count < at:
            assert outcome == "saved" and at > 7
            break
        assert outcome == ("saved" if error == "short" else
                           "power" if error == "power" else "E704"), at
        if saves or outcome == "saved":
            found = load_last(folder)
            assert found.state.step in (saves - 1, 9)
            assert same(found.params, params(found.state.step))
        save_last(folder, replace(STATE, step=10), params(10))
        assert load_last(folder).state.step == 10 and not list(folder.glob("*.part"))
    else:
        pytest.fail("saving never ends")


def test_a_disk_that_lies_is_found_out(tmp_path, monkeypatch):
    """What is read back differs from what was written: the old checkpoint stays the last."""
    save_last(tmp_path, STATE, params())
    real = checkpoint._read_file
    monkeypatch.setattr(checkpoint, "_read_file", lambda path: real(path)[:-1] + b"?")
    assert code_of(save_last, tmp_path, replace(STATE, step=8), params(2)) == "E704"
    monkeypatch.undo()
    assert load_last(tmp_path).state == STATE and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", [".", "/", ".."])
def test_a_folder_is_no_file_to_write(name, tmp_path, monkeypatch):
    """The current folder has an empty name, which was a traceback."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="Is a directory") as caught:
        write_durable(Path(name), b"text")
    assert caught.value.code == "E704" and "the name of a file" in caught.value.help
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_to_be_made(tmp_path):
    """The help said to make room, which there was."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="No such file") as caught:
        write_durable(tmp_path / "new" / "a.txt", b"text")
    assert caught.value.help == f"make the folder first: mkdir -p {tmp_path / 'new'}"
    with pytest.raises(CheckpointError, match="Not a directory") as caught:
        write_durable(tmp_path / "file" / "a.txt", b"text")
    assert f"{tmp_path / 'file'} is none" in caught.value.help


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 kB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", mount],
                          capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield mount
    subprocess.run(["umount", mount], check=True)


def test_full_disk(tiny_disk: Path):
    """The message says so, the old checkpoint loads, and room made is room used."""
    small = {"w": np.ones(1000, np.float32)}
    for step in (1, 2):
        save_last(tiny_disk, replace(STATE, step=step), small)
    large = {"w": np.ones(15_000, np.float32)}
    with pytest.raises(CheckpointError, match="No space left") as caught:
        save_last(tiny_disk, replace(STATE, step=3), large)
    assert caught.value.code == "E704" and "still there" in caught.value.help
    assert load_last(tiny_disk).state.step == 2 and not list(tiny_disk.glob("*.part"))
    save_last(tiny_disk, replace(STATE, step=4), small)
    log = logs.Log(tiny_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        for step in range(100):
            log.append("step", step, 0, {"text": "x" * 4000})
    log.close()
    assert load_last(tiny_disk).state.step == 4
    assert [r["step"] for r in logs.read_log(tiny_disk)] == list(range(len(
        logs.read_log(tiny_disk))))


# --- the log --------------------------------------------------------------------------------------


def test_log_of_a_resumed_run_has_no_record_twice(tmp_path):
    """What will be done again is dropped, and so is a line torn by a crash, at every byte."""
    log = logs.Log(tmp_path)
    for step in (5, 10):
        log.append("step", step, 0, {"loss": 1.5})
    log.append("epoch", 12, 1, {"train": {"loss": float("nan")}})
    log.append("step", 15, 1, {"loss": 0.5})
    log.close()
    data = (tmp_path / logs.NAME).read_bytes()
    assert logs.read_log(tmp_path)[2]["train"]["loss"] is None
    for end in range(len(data) + 1):
        (tmp_path / logs.NAME).write_bytes(data[:end])
        whole = data[:end].count(b"\n")
        assert len(logs.read_log(tmp_path)) == whole
    for step, epoch, kept in ((0, 0, []), (5, 0, [5]), (12, 0, [5, 10]), (12, 1, [5, 10, 12]),
                              (20, 1, [5, 10, 12, 15])):
        (tmp_path / logs.NAME).write_bytes(data + b'{"kind":"step","st')
        logs.Log(tmp_path, step, epoch).close()
        assert [r["step"] for r in logs.read_log(tmp_path)] == kept


def test_log_with_strange_lines(tmp_path):
    """The log is a text file that people edit."""
    (tmp_path / logs.NAME).write_bytes(b'\xff\n[1]\n{"kind":"step"}\n{"kind":"step","step":1}\n')
    logs.Log(tmp_path, 3, 0).close()
    assert logs.read_log(tmp_path) == [{"kind": "step", "step": 1}]
