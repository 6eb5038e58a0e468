"""Texts in, what a model says to them out: labels, or tokens that it chooses; in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lamina.commands.decoding import (
    BATCH,
    Spoken,
    Wish,
    batch_size,
    cut,
    said_by,
    speak,
    trimmed,
)
from lamina.commands.predicted import Prediction, Saying
from lamina.commands.texts import Example, Read, gather, read, require_utf8, unknown_tokens
from lamina.commands.trained import (
    SEED,
    Model,
    Request,
    classified,
    misfit,
    not_finite,
    require_finite,
    softmax,
)
from lamina.runtime.data.errors import DataError
from lamina.runtime.data.vocabulary import BOS, Vocabulary
from lamina.runtime.errors import Failure, show
from lamina.runtime.padding import LENGTHS, is_lengths, pad_inputs


def predict_texts(model: Model, request: Request) -> Iterator[Prediction]:
    """As `predict`, for a model of texts."""
    if not model.slots:
        yield from _continued(model, request)
        return
    examples = gather(model.pipeline, model.slots, request.files, request.texts)
    if request.wanted == "png" and (model.decoding is not None or model.target):
        _require_alignment(model, len(examples))
    prompts = _prompts(model, request.wish)
    if len(prompts) > 1 and len(prompts) != len(examples):
        raise Failure("E416", f"there are {len(prompts)} prompts for {len(examples)} examples",
                      "give --prompt once, or once for each example")
    for start in range(0, len(examples), BATCH):
        yield from _predict_some(model, request, examples[start : start + BATCH], prompts, start)


def _predict_some(model: Model, request: Request, examples: Sequence[Example],
                  prompts: Sequence[Sequence[int]], start: int) -> list[Prediction]:
    """Examples that are read, run in batches of like shapes, and put in order again."""
    found: dict[int, Prediction] = {}
    ready: list[tuple[int, Read]] = []
    for number, example in enumerate(examples):
        try:
            ready.append((number, read(model.pipeline, model.slots, example, request.invert)))
        except Failure as error:
            found[number] = Prediction(example.name, failure=error)
    most = batch_size(request.wish.policy) if model.batched or model.decoding is not None else 1
    for batch in cut([_sizes(model, one) for _, one in ready], ready, most):
        forced = [prompts[(start + number) % len(prompts)] for number, _ in batch] \
            if prompts else ()
        found |= _predict_batch(model, request, batch, forced, start)
    return [found[number] for number in range(len(examples))]


def _sizes(model: Model, one: Read) -> tuple:
    """The longest of an example's ragged sizes, then those that a batch must share."""
    ragged = {entry.key.removesuffix(LENGTHS) for entry in model.pipeline.lengths}
    longest, rest = 0, []
    for entry in model.pipeline.inputs:
        for size, count in zip(entry.shape[1:], one.inputs[entry.key].shape, strict=True):
            if size in ragged:
                longest = max(longest, count)
            else:
                rest.append(count)
    return longest, *rest


def _predict_batch(model: Model, request: Request, batch: Sequence[tuple[int, Read]],
                   prompts: Sequence[Sequence[int]], start: int) -> dict[int, Prediction]:
    """Predictions by number; a batch that does not fit is tried one by one."""
    examples = [one for _, one in batch]
    try:
        if model.decoding is not None:
            made = _decoded(model, request, examples, prompts, start + batch[0][0])
        else:
            made = _scored(model, examples)
    except ValueError as error:
        if len(batch) == 1:
            number, one = batch[0]
            return {number: Prediction(one.name, failure=misfit(one.name, error))}
        found: dict[int, Prediction] = {}
        for place, item in enumerate(batch):
            found |= _predict_batch(model, request, [item], prompts[place : place + 1], start)
        return found
    return {number: replace(made_one, unknown=one.unknown)
            for (number, one), made_one in zip(batch, made, strict=True)}


def _given(examples: Sequence[Read]) -> dict[str, list[np.ndarray]]:
    return {key: [one.inputs[key] for one in examples] for key in examples[0].inputs}


def _scored(model: Model, examples: Sequence[Read]) -> list[Prediction]:
    """What a model without choice gives: labels of positions, a class, or its output."""
    shapes = {entry.key: entry.shape
              for entry in (*model.pipeline.inputs, *model.pipeline.lengths)}
    inputs = pad_inputs(shapes, _given(examples))
    assert model.runner is not None
    if "rng" in model.net.inputs:
        inputs["rng"] = SEED
    output = model.runner.run(inputs)[model.output]
    shape = tuple(map(str, model.net.outputs[model.output].shape[1:]))
    lengths = {key: value for key, value in inputs.items() if is_lengths(key)}
    found = []
    for row, one in enumerate(examples):
        value = trimmed(output[row], shape, row, lengths) if model.batched else output
        try:
            require_finite(one.name, value)
        except DataError as error:
            found.append(Prediction(one.name, failure=error))
            continue
        made = Prediction(one.name, value)
        found.append(replace(made, saying=_labels(model, value)) if model.target
                     else classified(model, made))
    return found


def _labels(model: Model, scores: np.ndarray) -> Saying:
    """The likeliest token of every position, of scores [positions, tokens]."""
    vocabulary = model.pipeline.vocabulary(model.target)
    assert vocabulary is not None
    shares = scores.astype(np.float64)
    shares = shares if model.normalised else softmax(shares)
    numbers = shares[:, :len(vocabulary)].argmax(axis=1)
    tokens = tuple(vocabulary.tokens[number] for number in numbers)
    return Saying(vocabulary.join(numbers), tokens,
                  probabilities=tuple(shares.max(axis=1).tolist()))


# --- tokens that are chosen ---------------------------------------------------------------------


def _continued(model: Model, request: Request) -> Iterator[Prediction]:
    """Texts of a model without other inputs: one for each prompt."""
    if request.files or request.texts:
        raise DataError("E611", "the model takes no input but the tokens that it chooses",
                        "say with --prompt TEXT what they begin with")
    if request.wanted == "png":
        _require_alignment(model, 1)
    prompts = _prompts(model, request.wish) or [[]]
    most = batch_size(request.wish.policy)
    for start in range(0, len(prompts), most):
        some = prompts[start : start + most]
        spoken = _speak(model, request.wish, {}, some, start)
        for one in spoken:
            yield _spoken(model, request, Read("", {}, {}), one)


def _prompts(model: Model, wish: Wish) -> list[list[int]]:
    """The prompts as tokens. Raises Failure E416, DataError E610."""
    if not wish.prompts:
        return []
    assert model.decoding is not None
    source, vocabulary = model.decoding.decoder.source, _speech(model)
    if vocabulary is None:
        raise Failure("E416", "--prompt: no vocabulary tells the tokens that the model chooses",
                      "predict with the recipe and the run that it was trained by")
    before = [BOS] * model.pipeline.marks.get(model.pipeline.fields[source], (False, False))[0]
    found = []
    for prompt in wish.prompts:
        require_utf8(prompt)
        numbers = vocabulary.encode(prompt)
        strange = unknown_tokens(vocabulary, prompt, numbers)
        if strange:
            raise Failure("E416", f'--prompt "{show(prompt)}": the model has no token '
                          f"`{show(strange[0])}`", "begin with tokens of the training data")
        found.append([*before, *numbers.tolist()])
        limit = wish.limit or model.decoding.decoder.limit
        if len(found[-1]) > limit:
            raise Failure("E416", f'--prompt "{show(prompt)}" has {len(numbers)} tokens; the limit '
                          f"of steps is {limit}", "give a shorter one, or --limit N")
    return found


def _speech(model: Model) -> Vocabulary | None:
    """The vocabulary of the tokens that are chosen."""
    assert model.decoding is not None
    return model.pipeline.vocabulary(model.decoding.decoder.source)


def _decoded(model: Model, request: Request, examples: Sequence[Read],
             prompts: Sequence[Sequence[int]], number: int) -> list[Prediction]:
    given = _given(examples)
    spoken = _speak(model, request.wish, given, prompts, number)
    return [_spoken(model, request, one, said)
            for one, said in zip(examples, spoken, strict=True)]


def _speak(model: Model, wish: Wish, inputs: dict[str, Any], prompts: Sequence[Sequence[int]],
           number: int) -> list[Spoken]:
    assert model.decoding is not None
    return speak(model.decoding, model.params, wish, inputs, prompts, number)


def _spoken(model: Model, request: Request, one: Read, spoken: Spoken) -> Prediction:
    vocabulary = _speech(model)
    if np.isnan(spoken.score):
        return Prediction(one.name, failure=not_finite(one.name))
    text, tokens = said_by(vocabulary, spoken.numbers)
    saying = Saying(text, tokens, spoken.score)
    if request.wanted == "png" and model.alignment is not None:
        name, size, turned = model.alignment
        shares = spoken.outputs[name]
        saying = replace(saying, alignment=shares.T if turned else shares,
                         said=_written(vocabulary, spoken.numbers),
                         read=_read_tokens(model, one, size))
    output = spoken.outputs.get(model.output) if request.wanted == "npy" else None
    return Prediction(one.name, output, saying=saying)


def _written(vocabulary: Vocabulary | None, numbers: np.ndarray) -> tuple[str, ...]:
    """Every token, special ones too."""
    if vocabulary is None:
        return tuple(map(str, numbers.tolist()))
    return tuple(vocabulary.tokens[number] if number < len(vocabulary) else str(number)
                 for number in numbers.tolist())


def _read_tokens(model: Model, one: Read, size: str) -> tuple[str, ...]:
    """The tokens of the input of this ragged size; their places where it is no text."""
    entries = [entry for entry in model.pipeline.inputs if entry.shape[1:2] ==
               (size.removesuffix(LENGTHS),)]
    for entry in entries:
        if model.pipeline.vocabulary(entry.key) is not None:
            return _written(model.pipeline.vocabulary(entry.key), one.inputs[entry.key])
    return tuple(map(str, range(len(one.inputs[entries[0].key]))))


def _require_alignment(model: Model, examples: int) -> None:
    """Raise DataError E609 unless one example's alignment can be drawn."""
    if model.alignment is None:
        raise DataError("E609", "no output of the model has the axes of both the tokens that it "
                        "says and those that it reads, as an alignment [B, T~, S~] has",
                        "give it such an output, or save texts with --out FILE.txt")
    if examples != 1:
        raise DataError("E609", f"a picture shows one alignment, not {examples}",
                        "give one text, as with --text")
