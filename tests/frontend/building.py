"""Short ways to build a text and to compute what it says."""

from __future__ import annotations

import numpy as np

from lamina.compiler.errors import CompileError
from lamina.compiler.frontend.build import Build, build
from lamina.compiler.frontend.library import load_text
from lamina.compiler.ir.types import NUMPY_TYPES
from lamina.compiler.reference import evaluate


def model(body: str, before: str = "", input: str = "input x: f32[B, 8]") -> str:
    """A file with the model M of this body."""
    return f"{before}\nmodel M {{\n  {input}\n{body}\n}}\n"


def made(text: str, name: str = "M", **options) -> Build:
    """The built model of that name."""
    module = load_text(text, "test.lam")
    return build(module, module.models[name], **options)


def paths(text: str, name: str = "M") -> list[str]:
    """The parameters' paths of a model, in order."""
    return list(made(text, name).graph.params)


def types(text: str, name: str = "M", **options) -> dict[str, str]:
    """The types of a model's outputs."""
    graph = made(text, name, **options).graph
    return {name: str(graph.type(value)) for name, value in graph.outputs}


def codes(text: str) -> list[str]:
    """The codes of the errors of building M."""
    try:
        made(text)
    except CompileError as error:
        return [one.code for one in error.diagnostics]
    return []


def weights(built: Build, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values for all parameters; positive, so that they serve as variances too."""
    rng = np.random.default_rng(seed)
    graph = built.graph
    return {key: rng.uniform(0.5, 1.5, graph.type(value).shape).astype(
        NUMPY_TYPES[graph.type(value).dtype]) for key, value in graph.params.items()}


def compute(built: Build, params: dict, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs, by the reference interpreter."""
    return evaluate(built.graph, inputs, params)
