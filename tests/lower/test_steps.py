"""What steps say of themselves: multiply-accumulates, layers, parts of a training step."""

import pytest

import lamina
from lamina.commands.selection import select_step
from lamina.compiler.inspect.cost import backward_macs, expanded, macs_by_path
from lamina.compiler.ir.types import substitute
from lamina.runtime.cpu.plan import make_plan, total_macs
from lamina.runtime.program import BACKWARD, FORWARD, THREADS, UPDATING, dumps, loads

NETS = """block Twice(channels: int) {
  input x: [B, C, H, W]
  output y = x -> a: conv(channels, kernel=3, padding=1) -> relu
    -> b: conv(channels, kernel=3, padding=1)
}

model Pictures {
  input image: f32[B, 3, 8, 8]
  output logits = image -> body: Twice(16) -> relu -> flatten -> head: linear(10)
}

model Separable {
  input image: f32[B, 4, 9, 9]
  output y = image -> deep: conv(4, kernel=3, groups=4)
    -> wide: conv(8, kernel=3, stride=2, groups=2)
}

cell RNN(hidden: int) {
  input x: [B, D]
  state h: [B, hidden] = 0
  h = tanh((x -> inp: linear(hidden)) + (prev.h -> rec: linear(hidden)))
  output h
}

model Last {
  input x: f32[B, T, 8]
  y = x -> scan RNN(32) over T
  output logits = y.final.h -> head: linear(2)
}
"""
SIZES = {"B": 4, "T": 5}


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    path = tmp_path_factory.mktemp("nets") / "nets.lam"
    path.write_text(NETS)
    return path


def by_layer(program, part):
    """Multiply-accumulates of the steps of a part, by layer."""
    found = {}
    counts = total_macs(program, make_plan(program, {**SIZES, THREADS: 1}))
    for step, macs in zip(program.steps, counts, strict=True):
        if step.part == part and macs:
            found[step.layer] = found.get(step.layer, 0) + macs
    return found


def numbers(counts):
    return {path: substitute(count, SIZES) for path, count in counts.items()}


@pytest.mark.parametrize("name", ["Pictures", "Separable", "Last"])
def test_forward_steps_multiply_as_often_as_the_model_says(nets, name):
    # Rates are computed from these counts; the model's own come from its formulas.
    net = getattr(lamina.load(nets), name)()
    program = lamina.api.compile_graph(net.graph)
    found = by_layer(program, FORWARD)
    expected = numbers(macs_by_path(expanded(net.graph)))
    if name == "Last":  # the steps of a cell carry the path of the layer in it
        assert sum(found.values()) == sum(expected.values())
    else:
        assert found == expected


@pytest.mark.parametrize("name", ["Pictures", "Last"])
def test_a_training_step_multiplies_three_times_as_often(nets, name):
    # A product has two gradients, each as costly as itself; the input needs none.
    net = getattr(lamina.load(nets), name)()
    program = lamina.api.compile_graph(select_step(str(nets), name, {}, {}))
    assert by_layer(program, UPDATING) == {}
    forward, backward = by_layer(program, FORWARD), by_layer(program, BACKWARD)
    graph = expanded(net.graph)
    assert sum(forward.values()) == sum(numbers(macs_by_path(graph)).values())
    assert sum(backward.values()) == sum(numbers(backward_macs(graph)).values())
    if name == "Pictures":
        assert backward == {"body.a": forward["body.a"], "body.b": 2 * forward["body.b"],
                            "head": 2 * forward["head"]}


def test_a_training_step_has_parts_in_order(nets):
    # What is kept for the backward pass is what lives across the place where it begins.
    program = lamina.api.compile_graph(select_step(str(nets), "Pictures", {}, {}))
    parts = [step.part for step in program.steps if step.helper != "copy"]
    assert parts == sorted(parts, key=lambda part: part != FORWARD)
    assert set(parts) == {FORWARD, BACKWARD, UPDATING}
    assert {step.layer for step in program.steps if step.part == UPDATING} == {"optimizer"}
    assert "optimizer" not in {step.layer for step in program.steps if step.part != UPDATING}


def test_inference_has_one_part(nets):
    # Nothing there waits for a gradient.
    net = lamina.load(nets).Pictures()
    assert {step.part for step in lamina.api.compile_graph(net.graph).steps} == {FORWARD}


def test_labels_say_layer_and_helper(nets):
    # The profile and the memory plan group by them.
    program = lamina.api.compile_graph(lamina.load(nets).Pictures().graph)
    pairs = {(step.layer, step.helper) for step in program.steps}
    assert {("body.a", "pack"), ("body.a", ""), ("head", ""), ("body.a", "fill")} <= pairs
    titles = {step.layer: program.kernels[step.kernel].title for step in program.steps
              if step.helper in ("pack", "") and step.layer in ("body.a", "head")}
    assert titles == {"body.a": "Direct convolution.", "head": "Matrix product."}


def test_a_saved_program_keeps_what_steps_say(nets):
    # What is compiled once may be read by another process.
    program = lamina.api.compile_graph(select_step(str(nets), "Last", {}, {}))
    again = loads(dumps(program))
    assert again.steps == program.steps
    assert any(step.macs != 0 and step.part == BACKWARD for step in again.steps)
