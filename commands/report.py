"""`lamina report`: everything about a model on one page that loads nothing from anywhere."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from lamina.api import Net, load, version
from lamina.commands.bench import example_sizes
from lamina.commands.layered import Layout, arrange, chosen, opened
from lamina.commands.memory import live_bytes
from lamina.commands.sights import sights
from lamina.compiler.inspect.owners import origins
from lamina.compiler.inspect.report import Box, Structure, structure
from lamina.compiler.ir.graph import Graph
from lamina.compiler.lower.program import lower
from lamina.compiler.syntax import ast
from lamina.compiler.transform.pipeline import run_passes
from lamina.runtime.checkpoint import write_durable
from lamina.runtime.cpu.host import vector_width
from lamina.runtime.cpu.plan import Plan, make_plan
from lamina.runtime.program import THREADS, Program

PAGE = "lamina.commands.page"
ENDINGS = ("html", "htm")
MOST_TENSORS = 8  # of those that set the peak
MOST_TEXT = 400_000  # characters of the sources that the page shows


def write_report(net: Net, training: Graph | None, batches: tuple[int, int], path: Path,
                 file: str, settings: Mapping[str, str],
                 skip: frozenset[str] = frozenset()) -> int:
    """Write the page of a model; gives its size in bytes.

    `training` is its training step, if any; `batches` are those of the memory of inference and
    of training, planned without the passes `skip`. Raises Failure E416 for another ending than
    .html and .htm, E612 without the layout library, E704 where the page cannot be written.
    """
    chosen(ENDINGS, path.name)
    page = render_page(net.graph.name, report_data(net, training, batches, file, settings,
                                                   skip))
    data = page.encode()
    write_durable(path, data)
    return len(data)


def training_step_of(net: Net, file: str, choice: str, settings: Mapping[str, str]
                     ) -> tuple[Graph, int] | None:
    """The step and the batch of the recipe that trains a model: the chosen, else the first."""
    loaded = load(file)
    name = net.definition.name
    able = [key for key, recipe in loaded.module.recipes.items()
            if isinstance(recipe.model.func, ast.Name) and recipe.model.func.id == name]
    if not able:
        return None
    training = loaded.recipe(choice if choice in able else able[0], **settings)
    training.net.sizes.update(net.sizes)
    return training.step(0), training.recipe.batch


def render_page(title: str, data: Mapping[str, Any]) -> str:
    """The page with its data; nothing in the data can leave its place."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    folder = files(PAGE)
    parts = {"title": html.escape(f"{title} - Lamina report"), "data": text,
             "style": (folder / "report.css").read_text(encoding="utf-8"),
             "script": (folder / "report.js").read_text(encoding="utf-8")}
    first, *rest = (folder / "report.html").read_text(encoding="utf-8").split("{{")
    pieces = [first]
    for piece in rest:
        name, _, after = piece.partition("}}")
        pieces += [parts[name].encode("utf-8", "replace").decode(), after]
    return "".join(pieces)


def report_data(net: Net, training: Graph | None, batches: tuple[int, int], file: str,
                settings: Mapping[str, str], skip: frozenset[str] = frozenset()
                ) -> dict[str, Any]:
    """What the page shows, as plain data."""
    graph = net.graph
    sizes = example_sizes(graph, 1)
    drawn = structure(graph, sizes)
    layout, open_blocks, seen = arrange(drawn), opened(drawn), sights(graph, sizes)
    whole = drawn.boxes[0]
    memory = [_memory("Inference", graph, batches[0], skip)]
    if training is not None:
        memory.append(_memory("Training", training, batches[1], skip))
    boxes = [{**_box(box), "fields": seen.layers.get(box.path, []), "row": row, "column": column,
              "open": is_open}
             for box, (row, column), is_open in zip(drawn.boxes, layout.places, open_blocks,
                                                    strict=True)]
    return {
        "model": graph.name, "file": file, "version": version(),
        "parameters": whole.parameters, "macs": whole.macs, "activations": whole.bytes,
        "inputs": [f"{name}: {type}" for name, type in net.inputs.items()],
        "outputs": [f"{name}: {type}" for name, type in net.outputs.items()],
        "settings": [list(pair) for pair in settings.items()], "notes": _notes(graph),
        "images": seen.images, "spans": seen.spans, "boxes": boxes, "edges": _edges(drawn, layout),
        "memory": memory, "sources": _sources(graph, net), "first": _first(boxes),
    }


def _box(box: Box) -> dict[str, Any]:
    names = ("path", "name", "op", "kind", "parent", "shape", "parameters", "macs", "backward",
             "bytes", "line", "source", "times")
    return {name: getattr(box, name) for name in names}


def _edges(drawn: Structure, layout: Layout) -> list[dict[str, Any]]:
    return [{"block": edge.block, "start": edge.start, "end": edge.end, "bends": bends}
            for edge, bends in zip(drawn.edges, layout.bends, strict=True)]


def _first(boxes: list[dict[str, Any]]) -> int:
    """The layer that is chosen when the page opens: the first that sees a part of a picture."""
    shown = [i for i, box in enumerate(boxes) if i and box["kind"] not in ("input", "output")]
    local = [i for i in shown if any(one["rows"] is not None and not one["whole"]
                                     for one in boxes[i]["fields"])]
    return next(iter(local or shown), 0)


def _notes(graph: Graph) -> list[str]:
    free = {name: size for name, size in example_sizes(graph, 0).items() if size}
    if not free:
        return []
    chosen = ", ".join(f"{name} = {size}" for name, size in free.items())
    return [f"computed for {chosen}, which the model leaves open; --input sets other sizes"]


def _sources(graph: Graph, net: Net) -> list[dict[str, str]]:
    """The texts that layers are written in, the model's own first."""
    found = {net.definition.node.span.source.name: net.definition.node.span.source.text}
    for scope in graph.scopes:
        if scope.span is not None:
            found.setdefault(scope.span.source.name, scope.span.source.text)
    room, kept = MOST_TEXT, []
    for name, text in found.items():
        room -= len(text)
        if room >= 0:
            kept.append({"name": Path(name).name, "text": text})
    return kept


# --- memory -------------------------------------------------------------------------------------


def _memory(name: str, graph: Graph, batch: int, skip: frozenset[str]) -> dict[str, Any]:
    final = run_passes(graph, skip=skip)[-1].graph
    program = lower(final, vector_width())
    plan = make_plan(program, {**example_sizes(graph, batch), THREADS: 1})
    live = live_bytes(plan, len(program.steps))
    peak = max(live, default=0)
    at = live.index(peak) if live else 0
    return {"name": name, "title": f"{name}, batch {batch}, one thread",
            "note": f"arena of temporary values, batch {batch}", "arena": plan.arena_bytes,
            "steps": [step.label or "step" for step in program.steps], "live": live,
            "peak": peak, "at": at, **_tensors(program, plan, at, origins(final))}


def _tensors(program: Program, plan: Plan, at: int, files: Mapping[tuple[str, int], str]
             ) -> dict[str, Any]:
    """The largest temporary values that are live at a step, and how much the others hold."""
    live = [root for root in plan.offsets if plan.lives[root][0] <= at <= plan.lives[root][1]]
    live.sort(key=lambda root: -plan.sizes[root])
    rows = []
    for root in live[:MOST_TENSORS]:
        line, source = _place(program, plan, root, files)
        rows.append({"label": program.buffers[root].label, "shape": list(plan.shapes[root]),
                     "bytes": plan.sizes[root], "line": line, "source": source})
    rest = live[MOST_TENSORS:]
    return {"tensors": rows, "more": len(rest), "rest": sum(plan.sizes[root] for root in rest)}


def _place(program: Program, plan: Plan, root: int, files: Mapping[tuple[str, int], str]
           ) -> tuple[int, str]:
    """The line, and the file that it is in, of the step that first writes a value."""
    first = plan.lives[root][0]
    if first >= len(program.steps):
        return 0, ""
    step = program.steps[first]
    return step.line, files.get((step.layer, step.line), "")
