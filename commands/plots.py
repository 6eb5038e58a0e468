"""`lamina plot`, `filters` and `gradflow -o`: curves of runs, weights, feature maps, gradients."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamina.api import Net, Run
from lamina.commands.gradflow import Flow
from lamina.commands.layered import chosen, optional
from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph
from lamina.compiler.ir.rewrite import copy_into
from lamina.compiler.options import Options
from lamina.runtime.checkpoint import CheckpointError, write_durable
from lamina.runtime.errors import Failure, show
from lamina.runtime.logs import NAME, read_log

ENDINGS = ("png", "svg")
MOST_TILES = 256  # filters or maps in a picture
MOST_INCHES = 50.0  # of a side of a picture
NARROW = 3  # characters of a token that need not be turned
BLANK = "\u2423"  # in place of a token that is nothing to look at
PURPOSE = "drawing a picture"


def plot_runs(folders: Sequence[Path], path: Path) -> None:
    """Loss, metrics and learning rate of runs over their steps, one column of panels.

    Raises Failure E701 for a folder without a log, E702 for one without a whole record.
    """
    ending = chosen(ENDINGS, path.name)
    logs = list(zip(short_names(folders), map(_records, folders), strict=True))
    names = _figures([record for _, records in logs for record in records])
    figure = _figure(9, 2.6 * len(names))
    for axes, name in zip(np.atleast_1d(figure.subplots(len(names), 1, sharex=True)), names,
                          strict=True):
        for number, (label, records) in enumerate(logs):
            for kind, style in (("step", "-"), ("train", "--"), ("valid", "o-")):
                _curve(axes, records, name, kind, style, f"C{number}",
                       f"{label} {kind}" if len(logs) > 1 else kind)
        axes.set_ylabel(name, parse_math=False)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    axes.set_xlabel("step")
    _save(figure, path, ending)


def short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest end of each path that no other of the paths ends with."""
    paths = [folder.absolute().parts for folder in folders]
    names = []
    for parts in paths:
        depth = 1
        while depth < len(parts) and any(
                other[-depth:] == parts[-depth:] for other in paths if other != parts):
            depth += 1
        names.append(str(Path(*parts[-depth:])))
    return names


def _records(folder: Path) -> list[dict[str, Any]]:
    if not folder.is_dir():
        raise CheckpointError("E701", f"there is no folder {show(folder)}",
                              "give the folder of a run, such as runs/NAME")
    if not (folder / NAME).exists():
        raise CheckpointError("E701", f"{show(folder)} holds no {NAME}",
                              "give the folder that `lamina train` wrote")
    found = [record for record in read_log(folder) if isinstance(record.get("step"), int)]
    if not found:
        raise CheckpointError("E702", f"{show(folder / NAME)} holds no whole record",
                              "train for at least one epoch")
    return found


def _figures(records: Sequence[dict[str, Any]]) -> list[str]:
    """Names of what is drawn: the loss, metrics, then the learning rate."""
    names: dict[str, None] = {"loss": None}
    for record in records:
        for part in (record, record.get("train"), record.get("valid")):
            if isinstance(part, dict):
                names |= dict.fromkeys(name for name, value in part.items()
                                       if isinstance(value, float))
    lr = ["lr"] if "lr" in names else []
    return [name for name in names if name not in ("seconds", "lr")] + lr


def _curve(axes: Any, records: Sequence[dict[str, Any]], name: str, kind: str, style: str,
           colour: str, label: str) -> None:
    points = []
    for record in records:
        part = record if kind == "step" and record.get("kind") == "step" else record.get(kind)
        value = part.get(name) if isinstance(part, dict) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            points.append((record["step"], value))
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, style, color=colour, label=label, markersize=4,
                  linewidth=1.0 if kind == "step" else 1.6, alpha=0.45 if kind == "step" else 1.0)


# --- weights and feature maps -------------------------------------------------------------------


def draw_filters(net: Net, params: dict[str, np.ndarray], path: Path) -> str:
    """The filters of the first convolution as tiles; gives their key. Raises Failure E416."""
    ending = chosen(ENDINGS, path.name)
    key = next((key for key in net.parameters if params[key].ndim == 4), None)
    if key is None:
        raise Failure("E416", "the model has no convolution over images",
                      "filters are drawn of models with conv layers")
    weights = params[key]
    if weights.shape[1] == 3:  # red, green and blue
        low, high = weights.min(), weights.max()
        tiles = list(((weights - low) / ((high - low) or 1)).transpose(0, 2, 3, 1))
    else:
        tiles = list(weights.reshape(-1, *weights.shape[2:]))
    _tiles(tiles, f"{key} {list(weights.shape)}", path, ending, "RdBu_r")
    return key


def draw_maps(net: Net, params: dict[str, np.ndarray], at: str, inputs: dict[str, np.ndarray],
              options: Options, path: Path) -> None:
    """The feature maps of the layer `at` for one example. Raises Failure E416 where it has none.
    """
    ending = chosen(ENDINGS, path.name)
    run = Run(with_output(net.graph, at), options)
    value = run(params, **inputs)[at]
    if value.ndim != 4:
        raise Failure("E416", f"`{show(at)}` gives {list(value.shape)}, no maps over an image",
                      "choose a layer with the axes [batch, channels, height, width]")
    _tiles(list(value[0]), f"{at} {list(value.shape[1:])}", path, ending, "viridis")


def with_output(graph: Graph, at: str) -> Graph:
    """The graph with the result of the layer `at` as its one output. Raises KeyError."""
    scope = next((scope for scope in graph.scopes if scope.path == at), None)
    if scope is None:
        raise KeyError(at)
    builder = Builder(graph.name)
    values = copy_into(builder, graph)
    return builder.finish([(at, values[scope.result])])


def _tiles(tiles: list[np.ndarray], title: str, path: Path, ending: str, colours: str) -> None:
    shown = tiles[:MOST_TILES]
    wide = math.ceil(math.sqrt(len(shown)))
    high = -(-len(shown) // wide)
    figure = _figure(max(3.0, 0.7 * wide), 0.7 * high + 0.6)
    most = max((float(np.abs(tile).max()) for tile in shown), default=1.0) or 1.0
    limits = {"vmin": -most, "vmax": most} if colours == "RdBu_r" else {}
    for axes, tile in zip(figure.subplots(high, wide, squeeze=False).flat, shown, strict=False):
        axes.imshow(tile, cmap=colours, interpolation="nearest", **limits)
    for axes in figure.axes:
        axes.set_axis_off()
    more = f", the first {MOST_TILES}" if len(tiles) > MOST_TILES else ""
    figure.suptitle(title + more, fontsize=9, parse_math=False)
    _save(figure, path, ending)


# --- alignments ---------------------------------------------------------------------------------


def draw_alignment(shares: np.ndarray, read: Sequence[str], said: Sequence[str], path: Path
                   ) -> None:
    """What each token looked at, [said, read]: tokens read along the top, those said at the side.
    """
    ending = chosen(ENDINGS, path.name)
    figure = _figure(min(1.5 + 0.36 * len(read), MOST_INCHES),
                     min(1.2 + 0.3 * len(said), MOST_INCHES))
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0.0, aspect="auto", interpolation="nearest")
    above, beside = ([token if token.strip() else BLANK for token in tokens]
                     for tokens in (read, said))
    turned = max(map(len, above), default=0) > NARROW
    axes.set_xticks(range(len(above)), above, rotation=90 if turned else 0, parse_math=False)
    axes.set_yticks(range(len(beside)), beside, parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    figure.colorbar(drawn, ax=axes, label="share")
    _save(figure, path, ending)


# --- gradients ----------------------------------------------------------------------------------


def draw_flow(flow: Flow, path: Path) -> None:
    """Gradients by states over the steps back in time, those of layers and parameters as bars."""
    ending = chosen(ENDINGS, path.name)
    bars = [(flow.layers, [row.path for row in flow.layers], "layers"),
            (flow.parameters, [row.key for row in flow.parameters], "parameters")]
    bars = [panel for panel in bars if panel[0]]
    heights = [3.6] * bool(flow.states) + [0.8 + 0.22 * len(rows) for rows, _, _ in bars]
    figure = _figure(9, sum(heights))
    panels = list(np.atleast_1d(figure.subplots(len(heights), 1, height_ratios=heights)))
    if flow.states:
        _draw_states(panels.pop(0), flow)
    for axes, (rows, names, title) in zip(panels, bars, strict=True):
        places = range(len(rows), 0, -1)
        axes.barh(places, [row.gradient for row in rows], height=0.7)
        axes.set_yticks(places, names, fontsize=8, parse_math=False)
        if any(row.gradient for row in rows):
            axes.set_xscale("log")
        axes.set_xlabel(f"{title}: root mean square of the loss's gradient")
        axes.grid(alpha=0.3, axis="x")
    _save(figure, path, ending)


def _draw_states(axes: Any, flow: Flow) -> None:
    """A line for each state, through the last step; dashed the whole gradient."""
    for number, state in enumerate(flow.states):
        for norms, style, label in ((state.last, "-", state.name), (state.all, "--", None)):
            steps = [step for step, norm in enumerate(norms) if norm]
            axes.plot(steps, [norms[step] for step in steps], style, color=f"C{number % 10}",
                      label=label and label.replace("$", r"\$"), linewidth=1.4)
    axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("steps before the last (dashed: with what other steps hand out)")
    axes.set_ylabel("norm of the gradient")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


# --- figures ------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Any:
    figures = optional("matplotlib.figure", PURPOSE, "plots")
    return figures.Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path, ending: str) -> None:
    file = io.BytesIO()
    figure.savefig(file, format=ending, dpi=130)
    write_durable(path, file.getvalue())
