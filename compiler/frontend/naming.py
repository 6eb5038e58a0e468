"""Path segments: what the layers of a body are called in checkpoints and reports."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lamina.compiler.syntax import ast


def segments(*roots: Any) -> dict[int, str]:
    """Each stage under `roots` (by id) and its segment.

    A label is the segment. An unlabelled stage takes its layer's name, numbered only where the
    body holds several of that name. The insides of repeats are numbered on their own.
    """
    stages = [stage for root in roots for stage in _stages(root)]
    names = {id(stage): stage.label.id if stage.label else callee_name(stage.body)
             for stage in stages}
    counts = Counter(names.values())
    used: Counter[str] = Counter()
    labels = {stage.label.id for stage in stages if stage.label}
    result = {}
    for stage in stages:
        name = names[id(stage)]
        if stage.label is None and counts[name] > 1:
            while f"{name}{used[name]}" in labels:
                used[name] += 1
            result[id(stage)] = f"{name}{used[name]}"
            used[name] += 1
        else:
            result[id(stage)] = name
    return result


def callee_name(body: Any) -> str:
    """The name that an unlabelled stage goes by."""
    if isinstance(body, (ast.Repeat, ast.For, ast.Scan, ast.As)):
        return type(body).__name__.lower()
    while isinstance(body, ast.Call):
        body = body.func
    if isinstance(body, ast.Name):
        return body.id
    return body.name if isinstance(body, ast.Attribute) else "layer"


def _stages(root: Any) -> list[ast.Stage]:
    """All stages in textual order, not looking into repeats."""
    found: list[ast.Stage] = []
    todo: list[Any] = [root]
    while todo:
        node = todo.pop()
        if isinstance(node, tuple):
            todo += reversed(node)
        elif isinstance(node, (ast.Repeat, ast.For)):
            continue
        elif ast.is_node(node):
            if isinstance(node, ast.Stage):
                found.append(node)
            todo += reversed(ast.parts(node))
    return found
