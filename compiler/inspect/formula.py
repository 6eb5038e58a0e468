"""The output-size formula of a layer with its numbers filled in."""

from __future__ import annotations

from lamina.compiler.ir.graph import Graph, Node
from lamina.compiler.ir.types import Dim, shape_text
from lamina.compiler.ops.conv import padding_pairs, pair

AXES = ("height", "width")


def explain_sizes(graph: Graph, path: str) -> list[str]:
    """How the output size of the layer at `path` comes about, line by line.

    Raises KeyError when there is no such layer.
    """
    scope = next((s for s in graph.scopes if s.path == path), None)
    if scope is None:
        raise KeyError(path)
    lines = []
    for node in graph.nodes:
        if node.path == path and node.op.name in _FORMULAS:
            lines += _FORMULAS[node.op.name](graph, node)
    if not lines:
        operands = [node for node in graph.nodes if node.path == path and node.inputs]
        for node in operands:
            shapes = ", ".join(shape_text(graph.type(value).shape) for value in node.inputs)
            lines.append(f"{node.op.name}: {shapes} -> {shape_text(node.type.shape)}")
    result = shape_text(graph.type(scope.result).shape)
    return [*lines, f"{path}: {scope.callee} gives {result}"]


def _window_lines(graph: Graph, node: Node) -> list[str]:
    attrs = node.attributes
    size = graph.type(node.inputs[0]).shape[2:]
    kernel = graph.type(node.inputs[1]).shape[2:] if node.op.name == "conv2d" else \
        pair("", "kernel", attrs["kernel"])
    stride = kernel if attrs["stride"] is None else pair("", "stride", attrs["stride"])
    dilation = pair("", "dilation", attrs.get("dilation", 1))
    lines = [f"{node.op.name}: (in - kernel + 2 padding) / stride + 1, rounded down"]
    for axis, name in enumerate(AXES):
        low, high = padding_pairs(attrs["padding"])[axis]
        covered = dilation[axis] * (kernel[axis] - 1) + 1
        spread = f"  (kernel {kernel[axis]}, dilation {dilation[axis]})" \
            if dilation[axis] > 1 else ""
        lines.append(f"  {name}: ({size[axis]} - {covered} + {_border(low, high)}) / "
                     f"{stride[axis]} + 1 = {node.type.shape[2 + axis]}{spread}")
    return lines


def _transposed_lines(graph: Graph, node: Node) -> list[str]:
    attrs = node.attributes
    size, kernel = (graph.type(value).shape[2:] for value in node.inputs[:2])
    stride, dilation = (pair("", name, attrs[name]) for name in ("stride", "dilation"))
    extra = pair("", "output_padding", attrs["output_padding"], 0)
    lines = [f"{node.op.name}: (in - 1) stride - 2 padding + dilation (kernel - 1) + "
             "output_padding + 1"]
    for axis, name in enumerate(AXES):
        border = _border(*padding_pairs(attrs["padding"])[axis])
        lines.append(f"  {name}: ({size[axis]} - 1) * {stride[axis]} - {border} + "
                     f"{dilation[axis]} * ({kernel[axis]} - 1) + {extra[axis]} + 1 = "
                     f"{node.type.shape[2 + axis]}")
    return lines


def _upsampled_lines(graph: Graph, node: Node) -> list[str]:
    size = graph.type(node.inputs[0]).shape[2:]
    scale = pair("", "scale", node.attributes["scale"])
    return [f"{node.op.name}: in * scale",
            *(f"  {name}: {_factor(size[axis])} * {scale[axis]} = {node.type.shape[2 + axis]}"
              for axis, name in enumerate(AXES))]


def _border(low: Dim, high: Dim) -> str:
    """The padding of both sides."""
    return f"2 * {low}" if low == high else f"({low} + {high})"


def _factor(size: Dim) -> str:
    """A size as a factor of a product."""
    return f"({size})" if " " in str(size) else str(size)


_FORMULAS = {"conv2d": _window_lines, "max_pool2d": _window_lines, "avg_pool2d": _window_lines,
             "conv_transpose2d": _transposed_lines, "upsample2d": _upsampled_lines}
