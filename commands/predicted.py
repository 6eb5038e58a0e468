"""What a model said: as a line, as JSON, as a file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lamina.commands.layered import chosen
from lamina.commands.plots import draw_alignment
from lamina.runtime.checkpoint import write_durable
from lamina.runtime.data.errors import DataError
from lamina.runtime.data.pictures import encode_boxes, encode_mask
from lamina.runtime.errors import Failure, show

SURE = 0.3  # the least score of an object that is listed; JSON has all of them
ENDINGS = ("npy", "png")  # of what outputs are saved as
TEXT_ENDINGS = ("txt", *ENDINGS)  # of what those of a model of texts are saved as
LISTED = 6  # unknown tokens that are told
FEW = 16  # numbers of an output that are shown one by one


@dataclass(frozen=True, slots=True)
class Detection:
    """An object that a detector found: `box` is left, top, right, bottom in the input's pixels."""

    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Saying:
    """Tokens that a model says, and their text.

    `score` is the log-probability of all of them where they were chosen one after another,
    `probabilities` are those of each where positions are scored by themselves. `alignment` [said,
    read] holds which of the tokens `read` each token of `said` looked at.
    """

    text: str
    tokens: tuple[str, ...]
    score: float | None = None
    probabilities: tuple[float, ...] = ()
    alignment: np.ndarray | None = None
    said: tuple[str, ...] = ()
    read: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says to one example: its first output without the batch, or a failure.

    `shares` are the classes' probabilities, `label` the name of the likeliest; empty for a model
    whose output is not class scores. `objects` are a detector's, the surest first; None for others.
    `saying` is that of a model that says tokens; `unknown` are tokens of texts that were read
    by input that no vocabulary has.
    """

    name: str
    output: np.ndarray | None = None
    shares: tuple[float, ...] = ()
    label: str = ""
    failure: Failure | None = None
    objects: tuple[Detection, ...] | None = None
    picture: np.ndarray | None = None  # what a detector saw, float32 [C, H, W]
    saying: Saying | None = None
    unknown: Mapping[str, Sequence[str]] = field(default_factory=dict)


def require_ending(path: Path, texts: bool = False) -> str:
    """The ending of a file of predictions; Failure E416 for one that they are not saved as.

    `texts`: those of a model of texts.
    """
    return chosen(TEXT_ENDINGS if texts else ENDINGS, path.name)


def save_outputs(path: Path, found: Sequence[Prediction], texts: bool = False) -> None:
    """Write what was predicted, as the file's ending says.

    .npy: the outputs as one array, a row per example; .png: one picture, which is a mask, an
    alignment, or what a detector saw with the sure objects drawn over it; .txt: a line per example,
    empty for a failure. Raises Failure (E416, E609, E612, E704).
    """
    ending = require_ending(path, texts)
    if ending == "txt":
        write_durable(path, "".join(f"{_line(one)}\n" for one in found).encode())
    elif ending == "png":
        _save_picture(path, found)
    else:
        _save_array(path, [one.output for one in found if one.output is not None])


def _line(one: Prediction) -> str:
    """A prediction as one line of a file; a line break in a text is written \\n."""
    if one.failure is not None:
        return ""
    if one.saying is not None:
        return one.saying.text.replace("\n", "\\n")
    return one.label if one.shares else describe(one)


def _save_picture(path: Path, found: Sequence[Prediction]) -> None:
    outputs = [one.output for one in found if one.output is not None]
    first = found[0]
    if first.saying is not None and first.saying.alignment is not None:
        draw_alignment(first.saying.alignment, first.saying.read, first.saying.said, path)
    elif first.picture is not None and len(found) == 1:
        write_durable(path, _drawn(first))
    elif outputs:
        write_durable(path, encode_mask(_only_mask(outputs)))


def _save_array(path: Path, outputs: Sequence[np.ndarray]) -> None:
    if not outputs:
        return
    shapes = sorted({output.shape for output in outputs})
    if len(shapes) > 1:
        raise DataError("E609", f"outputs of shapes {list(shapes[0])} and {list(shapes[1])} make "
                        "no array", "predict files of different sizes one by one")
    file = io.BytesIO()
    np.save(file, np.stack(outputs), allow_pickle=False)
    write_durable(path, file.getvalue())


def _drawn(one: Prediction) -> bytes:
    assert one.picture is not None
    sure = [found for found in one.objects or () if found.score >= SURE]
    names = sorted({found.label for found in sure})
    return encode_boxes(one.picture, [found.box for found in sure],
                        [f"{found.label} {found.score:.0%}" for found in sure],
                        [names.index(found.label) + 2 for found in sure])


def _only_mask(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The class of each pixel, uint8 [H, W], of scores [classes, H, W]. Raises DataError E609.

    One score a pixel, as a sigmoid takes it, gives 0 or 1.
    """
    scores = outputs[0]
    if len(outputs) > 1 or scores.ndim != 3:
        what = f"{len(outputs)} outputs" if len(outputs) > 1 else \
            f"an output of shape {list(scores.shape)}"
        raise DataError("E609", "a .png holds one mask [classes, H, W] or one picture with its "
                        f"objects, not {what}",
                        "give one picture, or save arrays with --out FILE.npy")
    found = scores[0] > 0 if len(scores) == 1 else scores.argmax(axis=0)
    return found.astype(np.uint8)


def describe(one: Prediction) -> str:
    """A prediction as a line (or more, for an output of few rows)."""
    if one.saying is not None:
        text = printable(one.saying.text)
        return f"{show(one.name)}: {text}" if one.name else text
    if one.shares:
        return f"{show(one.name)}: {one.label} ({max(one.shares):.1%})"
    if one.objects is not None:
        return "\n".join(_object_lines(one.name, one.objects))
    assert one.output is not None
    value = one.output
    kind = f"{one.name}: {list(value.shape)} " if value.ndim else f"{one.name}: "
    if value.size <= FEW:
        return kind + np.array2string(value, precision=6, separator=", ", max_line_width=1000
                                      ).replace("\n", "")
    return f"{kind}min {value.min():.6g}  mean {value.mean():.6g}  max {value.max():.6g}"


def printable(text: str) -> str:
    """A text for a terminal: what is neither printed nor a line break or tab is escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
                   for c in text)


def warnings(found: Sequence[Prediction]) -> list[str]:
    """Which tokens of the texts that were read are in no vocabulary, a line for each input."""
    unknown: dict[str, list[str]] = {}
    for one in found:
        for key, tokens in one.unknown.items():
            unknown.setdefault(key, []).extend(tokens)
    return [_told(key, tokens) for key, tokens in unknown.items()]


def _told(name: str, tokens: Sequence[str]) -> str:
    """How many tokens of an input were unknown, and which, in words."""
    different = list(dict.fromkeys(tokens))
    listed = ", ".join(f"`{show(token)}`" for token in different[:LISTED])
    more = f" and {len(different) - LISTED:,} more" if len(different) > LISTED else ""
    count = f"{len(tokens):,} token{'' if len(tokens) == 1 else 's'} of `{show(name)}`"
    return f"{count} not in the vocabulary, read as <unk>: {listed}{more}"


def _object_lines(name: str, objects: Sequence[Detection]) -> list[str]:
    sure = [found for found in objects if found.score >= SURE]
    rest = len(objects) - len(sure)
    head = f"{name}: {len(sure)} object{'' if len(sure) == 1 else 's'}"
    head += f" ({rest} more below {SURE:.0%})" if rest else ""
    return [head, *(f"  {found.label} ({found.score:.1%}) at "
                    + ", ".join(f"{side:.1f}" for side in found.box) for found in sure)]


def as_json(one: Prediction) -> dict[str, Any]:
    """A prediction as plain data."""
    if one.failure is not None:
        return {"input": one.name, "code": one.failure.code, "error": one.failure.message,
                "help": one.failure.help}
    unknown = {"unknown": {key: list(tokens) for key, tokens in one.unknown.items()}} \
        if one.unknown else {}
    if one.saying is not None:
        return {"input": one.name, **_saying_json(one.saying), **_output_json(one), **unknown}
    if one.shares:
        return {"input": one.name, "label": one.label, "probability": max(one.shares),
                "probabilities": list(one.shares), **unknown}
    if one.objects is not None:
        return {"input": one.name, "objects": [
            {"label": o.label, "score": o.score, "box": list(o.box)} for o in one.objects]}
    return {"input": one.name, **_output_json(one), **unknown}


def _saying_json(saying: Saying) -> dict[str, Any]:
    found: dict[str, Any] = {"text": saying.text, "tokens": list(saying.tokens)}
    if saying.score is not None:
        found["score"] = saying.score
    if saying.probabilities:
        found["probabilities"] = list(saying.probabilities)
    return found


def _output_json(one: Prediction) -> dict[str, Any]:
    if one.output is None:
        return {}
    return {"shape": list(one.output.shape), "output": one.output.tolist()}
