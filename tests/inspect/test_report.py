"""What a report says of a model: boxes, edges, sums and places, without a browser."""

from pathlib import Path

import pytest

import lamina
from lamina.commands import report
from lamina.commands.bench import example_sizes
from lamina.commands.drawing import COLOURS
from lamina.commands.layered import arrange
from lamina.commands.memory import live_bytes
from lamina.commands.report import render_page, report_data, training_step_of
from lamina.compiler.inspect.cost import summarize
from lamina.compiler.inspect.report import BORDER, structure

HOSTILE = "</script><script>alert(1)</script><!--"


def drawn(name, model=None):
    graph = lamina.load(name).model(model).graph
    return graph, structure(graph, example_sizes(graph, 1))


@pytest.mark.parametrize("name, model", [("lenet5", None), ("unet", None), ("resnet", "ResNet18")])
def test_the_model_is_the_sum_of_its_layers(name, model):
    # The header, the blocks and the rows of the table must tell the same story.
    graph, found = drawn(name, model)
    leaves = [box for box in found.boxes if box.kind not in ("block", "input", "output")]
    for figure in ("parameters", "macs", "backward", "bytes"):
        total = sum(getattr(box, figure) for box in leaves)
        assert getattr(found.boxes[0], figure) == total, figure
    assert found.boxes[0].parameters == summarize(graph).parameters


def test_backward_work_leaves_out_the_gradient_of_the_image():
    # The first layer needs the gradient of its weights alone, the others of both operands.
    _, found = drawn("lenet5")
    boxes = {box.path: box for box in found.boxes}
    assert (boxes["c1"].macs, boxes["c1"].backward) == (117_600, 117_600)
    assert (boxes["c3"].macs, boxes["c3"].backward) == (240_000, 480_000)


def test_edges_stay_within_their_block():
    # Blocks fold because each is drawn by itself.
    _, found = drawn("resnet", "ResNet18")
    for edge in found.edges:
        for end in (edge.start, edge.end):
            assert end == BORDER or found.boxes[end].parent == edge.block


def test_a_block_that_works_itself_is_joined_to_what_is_in_it():
    # A scan reads what it needs at every step from a layer of its own cell: an edge within it.
    _, found = drawn("seq2seq", "Additive")
    paths = [box.path for box in found.boxes]
    inside = [edge for edge in found.edges if edge.block == paths.index("decoder")]
    assert (paths.index("decoder.key"), BORDER) in {(edge.start, edge.end) for edge in inside}


def test_lengths_are_not_drawn():
    # Where each example ends is in every operator; drawn, its comparisons hid the network.
    _, found = drawn("seq2seq", "Additive")
    paths = [box.path for box in found.boxes]
    assert not [path for path in paths if "~" in path or "less" in path or "select" in path]
    joined = {(paths[edge.start], paths[edge.end]) for edge in found.edges}
    assert ("decoder", "tokens") in joined


def test_what_is_computed_from_a_layer_without_inputs_is_joined_to_it():
    # The detector's positions depend on the image's size alone: they hung in a corner without an
    # edge, and the `concat` that places the boxes had nothing to join.
    _, found = drawn("detector")
    paths = [box.path for box in found.boxes]
    edges = {(paths[edge.start], paths[edge.end]) for edge in found.edges if edge.block == 0}
    joined = {start for start, end in edges if end == "concat0"}
    assert len(joined) == 2
    assert {("Positions", start) for start in ("slice", "slice1")} <= edges


def test_a_skip_connection_bends_around_what_it_skips():
    # U-Net's four skips are what its picture is about.
    _, found = drawn("unet")
    layout = arrange(found)
    paths = [box.path for box in found.boxes]
    bends = {(paths[edge.start], paths[edge.end]): bend
             for edge, bend in zip(found.edges, layout.bends, strict=True) if edge.block == 0}
    lengths = [len(bends[f"down{n}", f"up{n}"]) for n in (1, 2, 3, 4)]
    assert lengths == [11, 8, 5, 2]


def test_layers_come_before_what_reads_them():
    # Rows run downwards in every block.
    _, found = drawn("resnet", "ResNet18")
    layout = arrange(found)
    for edge in found.edges:
        if BORDER not in (edge.start, edge.end):
            assert layout.places[edge.start][0] < layout.places[edge.end][0]


def test_hostile_text_stays_data():
    # A comment or a name in a model file must not become part of the page.
    page = render_page(HOSTILE, {"name": HOSTILE + "\u2028"})
    assert page.count("</script>") == 2
    assert "<script>alert" not in page
    assert page.index("default-src 'none'") < page.index("<style>")


def test_live_bytes_are_what_is_held_at_each_step():
    # The area under the memory chart.
    class Plan:
        offsets = {0: 0, 1: 64}
        lives = ((0, 1), (1, 2))
        sizes = (8, 4)

    assert live_bytes(Plan, 3) == [8, 12, 4]


@pytest.fixture(scope="module")
def memories():
    """The memory charts of the detector's inference and of its training."""
    net = lamina.load("detector").model(None)
    training = training_step_of(net, "detector", "", {})
    return report_data(net, training[0], (1, training[1]), "detector", {})["memory"]


def test_the_values_at_the_peak_add_up_to_it(memories):
    # The detector's training listed eight tensors, 235 of 539 MB, and said nothing of the others.
    for memory in memories:
        listed = sum(tensor["bytes"] for tensor in memory["tensors"])
        assert listed + memory["rest"] == memory["peak"] < memory["arena"]
    assert memories[1]["more"] > 8


def test_values_at_the_peak_name_the_file_that_they_are_written_in(memories):
    # A line alone was read as one of the model's own file.
    places = {(t["label"].partition(".")[0], t["source"]) for t in memories[1]["tensors"]}
    assert ("stem", "resnet.lam") in places
    assert ("DetectionLoss: sub+sub+sub", "detector.lam") in places


def test_helpers_of_a_step_are_told_from_its_result():
    # Buffers of one step had the same label: a thread's scratch, and the result.
    net = lamina.load("lenet5").model(None)
    tensors = report_data(net, None, (1, 1), "lenet5", {})["memory"][0]["tensors"]
    labels = [tensor["label"] for tensor in tensors]
    assert {f"c5: matmul+add+tanh{end}" for end in (", scratch", "")} <= set(labels)
    assert len(set(labels)) == len(labels)


def test_kinds_say_what_layers_are_for():
    # Suppression was called an embedding; subtraction and argmax were activations.
    _, found = drawn("detector")
    kinds = {box.op: box.kind for box in found.boxes}
    wanted = {"non_max_suppression": "selection", "argmax": "reduction", "cast": "arithmetic",
              "sub": "arithmetic", "squeeze": "shape", "softplus": "activation"}
    assert {op: kinds[op] for op in wanted} == wanted


def test_upsampling_is_a_kind_of_its_own(tmp_path):
    # It was called an activation.
    path = tmp_path / "m.lam"
    path.write_text("model M {\n  input x: f32[B, 3, 8, 8]\n  output y = x -> upsample(2)\n}\n")
    _, found = drawn(str(path))
    assert {box.op: box.kind for box in found.boxes}["upsample"] == "resampling"


def test_a_loop_over_the_same_weights_runs_as_often_as_it_says(tmp_path):
    # One box stands for all rounds.
    path = tmp_path / "m.lam"
    path.write_text("model M {\n  input x: f32[B, 8]\n"
                    "  output y = x -> repeat 4 shared { l: linear(8) -> tanh }\n}\n")
    _, found = drawn(str(path))
    assert {box.name: box.times for box in found.boxes if box.kind in ("linear", "activation")} \
        == {"l": 4, "tanh": 4}


def test_every_kind_has_a_colour():
    # A kind without one would be drawn black on the page, and not at all in a picture.
    folder = Path(report.__file__).parent / "page"
    style = (folder / "report.css").read_text()
    for kind in COLOURS:
        assert style.count(f"--{'block-kind' if kind == 'block' else kind}: ") == 2, kind
