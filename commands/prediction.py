"""Prediction: a user's files and texts in, what a trained model says to them out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lamina.api import Decoding, Net, Runner, Training, make_runner
from lamina.commands.decoding import BATCH, Spoken, Wish, cut, require_choice, said_by, speak
from lamina.commands.decoding import trimmed as without_padding
from lamina.commands.examples import (
    Pipeline,
    group_files,
    lengths_of,
    open_pipeline,
    read_input,
)
from lamina.commands.predicted import Detection, Prediction, Saying
from lamina.commands.texts import Example, Read, Slots, gather, read, slots_of, unknown_tokens
from lamina.commands.training import read_state, read_weights, weights_file
from lamina.compiler.options import Options
from lamina.runtime.data.errors import DataError
from lamina.runtime.data.vocabulary import BOS, Vocabulary
from lamina.runtime.detection import OUTPUTS
from lamina.runtime.errors import Failure, show
from lamina.runtime.padding import LENGTHS, is_lengths, pad_inputs


@dataclass(frozen=True, slots=True)
class Model:
    """A model with its weights and the pipeline that its examples come through.

    `decoding` is that of a model that chooses its tokens; others have a `runner`. `target` is
    what the first output scores at every position, or empty; `alignment` is an output, with the
    size of the tokens that it looks at, and whether they come before those that look.
    """

    net: Net
    params: Mapping[str, np.ndarray]
    pipeline: Pipeline
    slots: Slots
    texts: bool
    runner: Runner | None
    decoding: Decoding | None
    output: str
    batched: bool
    scores: bool
    target: str
    normalised: bool
    alignment: tuple[str, str, bool] | None


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be predicted: files, texts, and how tokens are chosen.

    `wanted` is the ending of the file that the outputs are for, or empty.
    """

    files: Sequence[str] = ()
    texts: Sequence[str] = ()
    invert: bool = False
    wish: Wish = Wish()
    wanted: str = ""


def open_model(net: Net, training: Training | None, options: Options, weights: Path) -> Model:
    """A model to predict with; without a recipe (`training` is None) it takes arrays alone.

    Raises Failure for weights that do not fit, and for texts whose vocabulary is not known.
    """
    params = read_weights(net.init() if training is None else training.initial(), weights)
    pipeline = open_pipeline(net, training, read_state(weights_file(weights)))
    decoding = net.decoder(options.target, options.threads) if net.chooses else None
    if decoding is not None:
        pipeline = _without_gold(pipeline, decoding)
    texts = decoding is not None or any(pipeline.vocabulary(entry.key) for entry in pipeline.inputs)
    output, kind = next(iter(net.outputs.items()))
    batches = {net.inputs[entry.key].shape[:1] for entry in pipeline.inputs}
    target = training.scores_positions if training is not None and texts else ""
    return Model(
        net, params, pipeline, slots_of(pipeline), texts,
        None if decoding is not None else _runner(net, params, options), decoding, output,
        kind.rank > 0 and kind.shape[:1] in batches,
        training is not None and training.scores_classes,
        target if pipeline.vocabulary(target) else "",
        net.graph.node(dict(net.graph.outputs)[output]).op.name == "softmax",
        None if decoding is None else _alignment(decoding))


def _runner(net: Net, params: Mapping[str, np.ndarray], options: Options) -> Runner:
    runner = make_runner(net.graph, options)
    runner.set_params({key: params[key] for key in net.graph.params})
    return runner


def _without_gold(pipeline: Pipeline, decoding: Decoding) -> Pipeline:
    """What is to be given where the model chooses: all inputs but the tokens themselves."""
    return replace(pipeline,
                   inputs=tuple(one for one in pipeline.inputs if one.key in decoding.inputs),
                   lengths=tuple(one for one in pipeline.lengths if one.key in decoding.inputs))


def _alignment(decoding: Decoding) -> tuple[str, str, bool] | None:
    """The first output with the axes of the chosen tokens and of an input's."""
    said = decoding.decoder.length + LENGTHS
    for name, value in decoding.last.graph.outputs:
        shape = [str(size) for size in decoding.last.graph.type(value).shape]
        read = [size for size in shape[1:] if size != said and size in decoding.inputs]
        if len(shape) == 3 and len(read) == 1 and said in shape[1:]:
            return name, read[0], shape[1] == read[0]
    return None


def predict(model: Model, request: Request) -> Iterator[Prediction]:
    """A prediction for each example, in order.

    A bad example is a Prediction with a failure. Raises Failure for what ails all of them.
    """
    require_choice(model.decoding is not None, request.wish)
    if model.texts:
        return _predict_texts(model, request)
    if request.texts:
        raise DataError("E611", "--text: the model takes no texts", "give it files")
    return _predict_files(model, request)


def read_example(net: Net, training: Training | None, weights: Path, argument: str
                 ) -> dict[str, np.ndarray]:
    """A file as a batch of one, as the model takes it, by input."""
    pipeline = open_pipeline(net, training, read_state(weights_file(weights)))
    files, = group_files([argument], [entry.key for entry in pipeline.inputs])
    return {entry.key: read_input(pipeline, entry, files[entry.key], False)
            for entry in pipeline.inputs}


# --- one by one ---------------------------------------------------------------------------------


def _predict_files(model: Model, request: Request) -> Iterator[Prediction]:
    inputs = [entry.key for entry in model.pipeline.inputs]
    if not request.files:
        raise DataError("E611", f"no file is given for `{'`, `'.join(map(show, inputs))}`",
                        "name it after the model")
    for files in group_files(request.files, inputs):
        name = " ".join(request.files) if len(files) > 1 else str(*files.values())
        try:
            yield _predict_file(model, name, files, request.invert)
        except Failure as error:
            yield Prediction(name, failure=error)


def _predict_file(model: Model, name: str, files: Mapping[str, Path], invert: bool) -> Prediction:
    inputs = {entry.key: read_input(model.pipeline, entry, files[entry.key], invert)
              for entry in model.pipeline.inputs}
    inputs |= lengths_of(model.pipeline, inputs)
    outputs = _run(model, name, inputs)
    output = outputs[model.output]
    output = output[0] if model.batched else output
    _require_finite(name, output)
    if model.net.detects:
        return Prediction(name, output, objects=_objects(model, outputs), picture=_seen(inputs))
    return _classified(model, Prediction(name, output))


def _run(model: Model, name: str, inputs: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    assert model.runner is not None
    if "rng" in model.net.inputs:
        inputs["rng"] = np.array([0, 1], np.int32)
    try:
        return model.runner.run(inputs)
    except ValueError as error:  # sizes that do not go together
        raise _misfit(name, error) from None


def _misfit(name: str, error: ValueError) -> DataError:
    return DataError("E609", f"{show(name)} does not fit the model: {show(error)}")


def _require_finite(name: str, output: np.ndarray) -> None:
    if not np.isfinite(output).all():
        raise DataError("E611", f"the model's output for {show(name)} is not finite",
                        "look for NaN or infinity in the file and in the weights")


def _classified(model: Model, one: Prediction) -> Prediction:
    """With the classes' probabilities, where the output is class scores."""
    if not model.scores:
        return one
    assert one.output is not None
    shares = one.output.astype(np.float64)
    shares = shares if model.normalised else _softmax(shares)
    return replace(one, shares=tuple(shares.tolist()), label=_label(model, int(shares.argmax())))


def _label(model: Model, number: int) -> str:
    """The name of a class, or its number where it has none."""
    classes = model.pipeline.classes
    return classes[number] if number < len(classes) else str(number)


def _objects(model: Model, outputs: Mapping[str, np.ndarray]) -> tuple[Detection, ...]:
    """What a detector kept of one example: boxes whose score is not 0, the surest first."""
    boxes, scores, labels = (outputs[name][0] for name in OUTPUTS)
    order = np.argsort(-scores, kind="stable")
    return tuple(Detection(_label(model, int(labels[i])), float(scores[i]),
                           tuple(boxes[i].tolist())) for i in order if scores[i] > 0)


def _seen(inputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The picture among the inputs, [C, H, W] of one or three channels."""
    return next((value[0] for value in inputs.values()
                 if value.ndim == 4 and value.shape[1] in (1, 3)), None)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of scores, along the last axis."""
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


# --- texts, in batches --------------------------------------------------------------------------


def _predict_texts(model: Model, request: Request) -> Iterator[Prediction]:
    if not model.slots:
        yield from _continued(model, request)
        return
    examples = gather(model.pipeline, model.slots, request.files, request.texts)
    if request.wanted == "png":
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
    for batch in cut([_sizes(model, one) for _, one in ready], ready):
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
            return {number: Prediction(one.name, failure=_misfit(one.name, error))}
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
        inputs["rng"] = np.array([0, 1], np.int32)
    output = model.runner.run(inputs)[model.output]
    shape = model.net.outputs[model.output].shape[1:]
    lengths = {key: value for key, value in inputs.items() if is_lengths(key)}
    found = []
    for row, one in enumerate(examples):
        value = without_padding(output[row], shape, row, lengths) if model.batched else output
        try:
            _require_finite(one.name, value)
        except DataError as error:
            found.append(Prediction(one.name, failure=error))
            continue
        made = Prediction(one.name, value)
        found.append(replace(made, saying=_labels(model, value)) if model.target
                     else _classified(model, made))
    return found


def _labels(model: Model, scores: np.ndarray) -> Saying:
    """The likeliest token of every position, of scores [positions, tokens]."""
    vocabulary = model.pipeline.vocabulary(model.target)
    assert vocabulary is not None
    shares = scores.astype(np.float64)
    shares = shares if model.normalised else _softmax(shares)
    numbers = shares[:, :len(vocabulary)].argmax(axis=1)
    tokens = tuple(vocabulary.tokens[number] for number in numbers)
    return Saying(vocabulary.join(numbers), tokens,
                  probabilities=tuple(shares.max(axis=1).tolist()))


# --- texts that are chosen ----------------------------------------------------------------------


def _continued(model: Model, request: Request) -> Iterator[Prediction]:
    """Texts of a model without other inputs: one for each prompt."""
    if request.files or request.texts:
        raise DataError("E611", "the model takes no input but the tokens that it chooses",
                        "say with --prompt TEXT what they begin with")
    if request.wanted == "png":
        _require_alignment(model, 1)
    prompts = _prompts(model, request.wish) or [[]]
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        spoken = _speak(model, request.wish, {}, some, start)
        for one in spoken:
            yield _spoken(model, request, Read("", {}, ()), one)


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
