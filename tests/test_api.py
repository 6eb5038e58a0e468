"""The Python interface: loading, what a Net tells, running, gradients, PyTorch's names."""

from pathlib import Path

import numpy as np
import pytest

import lamina
from lamina.api import parse_expression
from lamina.compiler.errors import render
from lamina.compiler.frontend.build import Objective
from lamina.compiler.reference import evaluate

# One small model has a convolution, batch-norm, dropout and two dense layers.
MIXED = """model Mixed(classes: int = 3) {
  input image: f32[B, 2, 6, 6]
  output logits: [B, classes] = image
    -> c1: conv(3, kernel=3) -> bn: batchnorm -> relu
    -> flatten -> dropout(0.25) -> f1: linear(4) -> tanh -> head: linear(classes)
}
"""


@pytest.fixture(scope="module")
def mixed():
    """The small model."""
    return lamina.loads(MIXED).Mixed()


def pictures(batch, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 2, 6, 6)).astype(np.float32)


# --- loading ------------------------------------------------------------------------------------


def test_settings_may_be_numpy_numbers():
    # Sizes often come out of arrays: a scalar or an array stands for its numbers.
    file = lamina.loads(MIXED)
    for seven in (np.int64(7), np.array(7), np.float32(7).astype(np.int32)):
        assert file.Mixed(classes=seven).outputs["logits"].shape[1] == 7
    depths = lamina.load("resnet").ResNet(depths=np.array([1, 1, 1, 1]), classes=np.int32(5))
    assert depths.outputs["logits"].shape[1] == 5


@pytest.mark.parametrize(("value", "words"), [
    (object(), "not object"), ({1: 2}, "not dict"), (float("nan"), "finite, not nan"),
    ([1, np.float32("inf")], "finite, not inf"), (np.array([object()]), "not object"),
])
def test_settings_that_the_language_cannot_say(value, words):
    # A TypeError in Python's words, not a syntax error in a text that nobody wrote.
    with pytest.raises(TypeError, match=words):
        lamina.loads(MIXED).Mixed(classes=value)


def test_load_by_name_path_and_text(tmp_path):
    # The three ways in lead to the same graph.
    path = tmp_path / "mixed.lam"
    path.write_text(MIXED)
    for given in (path, str(path)):
        assert lamina.load(given).models == ("Mixed",)
    assert lamina.load("lenet5").recipes == ("digits", "fashion")
    assert lamina.load(path).Mixed().parameters == lamina.loads(MIXED).Mixed().parameters


def test_an_error_holds_all_diagnostics():
    # Tools read the list; people read the text, which shows every one of them.
    text = "model M {\n  input x: f32[B, 4]\n  a = x -> liner(3)\n  output y = b\n}\n"
    with pytest.raises(lamina.CompileError) as caught:
        lamina.loads(text).M().graph  # noqa: B018
    found = caught.value.diagnostics
    assert [(d.code, d.span.line) for d in found] == [("E301", 3), ("E301", 4)]
    assert str(caught.value) == "\n\n".join(map(render, found))


@pytest.mark.parametrize("name", ["lenet", "nowhere.lam", ""])
def test_a_file_that_is_not_there(name):
    # E118 and a way out; never a Python error about paths.
    with pytest.raises(lamina.CompileError) as caught:
        lamina.load(name)
    assert caught.value.diagnostics[0].code == "E118"


def test_a_misspelt_zoo_name_is_suggested():
    # The zoo is small: its names are worth telling.
    with pytest.raises(lamina.CompileError, match="did you mean `lenet5`"):
        lamina.load("lenet")
    with pytest.raises(lamina.CompileError, match="a name of the zoo: .*lenet5"):
        lamina.load("qqqq")


def test_only_text_is_a_model():
    # Bytes have no lines to point at.
    with pytest.raises(TypeError, match="not bytes"):
        lamina.loads(b"model M {}")


def test_names_that_do_not_exist_list_those_that_do():
    # Attributes come from the file, so the message has to list them.
    file = lamina.loads(MIXED)
    with pytest.raises(AttributeError, match="no model is named Mixd; models here: Mixed"):
        file.Mixd()
    with pytest.raises(AttributeError, match="models here: none"):
        lamina.loads("# nothing\n").Net()
    assert "Mixed" in dir(file)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        lamina.lod("lenet5")
    with pytest.raises(lamina.CompileError, match="models here: Mixed"):
        file.model("Qqqq")
    with pytest.raises(lamina.CompileError, match="this file has no recipe"):
        file.recipe()


def test_settings():
    # Settings reach the graph; wrong ones are diagnostics, not Python errors.
    file = lamina.load("lenet5")
    assert str(file.LeNet5(classes=7).outputs["logits"]) == "f32[B, 7]"
    for settings, code in (({"clases": 7}, "E409"), ({"classes": "many"}, "E411"),
                           ({"classes": 2.5}, "E411")):
        with pytest.raises(lamina.CompileError) as caught:
            file.LeNet5(**settings).graph  # noqa: B018
        assert caught.value.diagnostics[0].code == code
    with pytest.raises(TypeError, match="LeNet5"):
        file.LeNet5(7)


# --- what a Net tells ---------------------------------------------------------------------------


def test_inputs_outputs_parameters(mixed):
    # Types with symbols, in the order of the file; nothing is compiled for it.
    assert {name: str(type) for name, type in mixed.inputs.items()} == {"image": "f32[B, 2, 6, 6]"}
    assert {name: str(type) for name, type in mixed.outputs.items()} == {"logits": "f32[B, 3]"}
    assert {name: type.shape for name, type in mixed.parameters.items()} == {
        "c1.weight": (3, 2, 3, 3), "c1.bias": (3,), "bn.weight": (3,), "bn.bias": (3,),
        "bn.running_mean": (3,), "bn.running_var": (3,), "f1.weight": (4, 48), "f1.bias": (4,),
        "head.weight": (3, 4), "head.bias": (3,)}
    assert any(node.op.name == "conv2d" for node in mixed.graph.nodes)
    assert mixed.summary().parameters == sum(
        np.prod(type.shape) for key, type in mixed.parameters.items() if "running" not in key)


def test_init_depends_on_seed_and_path_alone(mixed):
    # A layer that is added must not change how the others start: runs stay comparable.
    first, again, other = mixed.init(3), mixed.init(3), mixed.init(4)
    assert set(first) == set(mixed.parameters)
    for key, value in first.items():
        assert value.dtype == np.float32
        assert np.array_equal(value, again[key])
        drawn = not key.startswith("bn")
        assert np.array_equal(value, other[key]) != drawn
    assert (first["bn.running_mean"] == 0).all() and (first["bn.running_var"] == 1).all()
    more = lamina.loads(MIXED.replace("-> f1:", "-> f0: linear(48) -> f1:")).Mixed().init(3)
    assert set(more) - set(first) == {"f0.weight", "f0.bias"}
    for key, value in first.items():
        assert np.array_equal(value, more[key])


# --- running ------------------------------------------------------------------------------------


def test_targets_agree_and_batches_change_freely(mixed):
    # One compilation serves every batch size, also none and one.
    weights = mixed.init(0)
    fast, plain = mixed.compile(), mixed.compile(target="numpy")
    for batch in (4, 1, 7, 0, 4):
        image = pictures(batch, batch)
        ours, reference = fast(weights, image=image), plain(weights, image=image)
        assert set(ours) == {"logits"}
        assert ours["logits"].shape == (batch, 3)
        assert ours["logits"].dtype == np.float32
        assert np.allclose(ours["logits"], reference["logits"], atol=1e-5)


def test_a_run_takes_the_weights_it_is_given(mixed):
    # No state hides in a compiled function: the same call gives the same numbers.
    run, image = mixed.compile(target="numpy"), pictures(2)
    first, second = mixed.init(0), mixed.init(1)
    before = run(first, image=image)["logits"]
    assert not np.array_equal(before, run(second, image=image)["logits"])
    assert np.array_equal(before, run(first, image=image)["logits"])
    extra = {**first, "optimizer/f1.weight": np.zeros(3, np.float32)}
    assert np.array_equal(before, run(extra, image=image)["logits"])


@pytest.mark.parametrize("target", ["cpu", "numpy"])
@pytest.mark.parametrize(("inputs", "error", "says"), [
    ({}, KeyError, "input 'image', f32.B, 2, 6, 6., is missing"),
    ({"image": pictures(1), "label": pictures(1)}, KeyError, "no input is named 'label'"),
    ({"image": pictures(1)[:, :1]}, ValueError, "image.*has? shape|must have shape"),
    ({"image": pictures(1)[0]}, ValueError, "image.*shape"),
    ({"image": pictures(1).astype(np.int32)}, ValueError, "must be float32, not int32"),
    ({"image": [["a"]]}, ValueError, "must be float32, not <U1"),
    ({"image": None}, ValueError, "must be float32, not object"),
])
def test_wrong_inputs(mixed, target, inputs, error, says):
    # Each mistake names the input, what it should be, and what it is; both targets alike.
    run = mixed.compile(target=target)
    with pytest.raises(error, match=says):
        run(mixed.init(0), **inputs)


@pytest.mark.parametrize("target", ["cpu", "numpy"])
def test_wrong_weights(mixed, target):
    # The same for weights.
    run, weights = mixed.compile(target=target), mixed.init(0)
    with pytest.raises(KeyError, match=r"weights are missing: c1\.weight, c1\.bias.* and 6 more"):
        run({}, image=pictures(1))
    with pytest.raises(ValueError, match=r"f1\.weight.*must have shape \(4, 48\)"):
        run({**weights, "f1.weight": np.zeros((48, 4), np.float32)}, image=pictures(1))


def test_wrong_targets_and_threads(mixed):
    # A typo in an option is told, not ignored.
    with pytest.raises(ValueError, match="no target is named 'cuda'; targets: cpu, numpy"):
        mixed.compile(target="cuda")
    with pytest.raises(ValueError, match="threads must be at least 1"):
        mixed.compile(threads=0)


# --- gradients ----------------------------------------------------------------------------------

FLAT = "model M {{\n  input x: f32[B, 3]\n  input t: f32[B, {out}]\n{body}\n}}\n"
NETS = {
    "residual": ("  h = x -> a: linear(3) -> tanh\n  output y = x + h", 3),
    "shared": ("  shared f = linear(3)\n  output y = x -> f -> tanh -> f", 3),
    "shared residual": ("  shared f = linear(3)\n  h = x + (x -> f -> tanh)\n"
                        "  output y = h + (h -> f -> sigmoid)", 3),
    "tied": ("  shared enc = linear(2)\n  output y = (x -> enc -> tanh) @ enc.weight + 0.5", 3),
    "normalised": ("  output y = x -> ln: layernorm -> a: linear(2)", 2),
}


def direction_check(net, loss, inputs, seed=0):
    """Our gradient along random directions against float64 differences of the same graph."""
    graph = net.build(True, Objective(parse_expression(loss))).graph
    weights = net.init(seed)
    value, grads = net.value_and_grad(loss, target="numpy")(weights, **inputs)
    wide = {k: v.astype(np.float64) for k, v in weights.items()}
    big = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in inputs.items()}

    def at(key, move):
        return float(evaluate(graph, big, {**wide, key: wide[key] + move})["loss"])

    assert float(value) == pytest.approx(at(next(iter(wide)), 0.0), rel=1e-5)
    rng = np.random.default_rng(seed)
    for key, grad in grads.items():
        for _ in range(3):
            way = rng.standard_normal(grad.shape)
            slope = (at(key, 1e-5 * way) - at(key, -1e-5 * way)) / 2e-5
            assert float((grad * way).sum()) == pytest.approx(slope, rel=2e-3, abs=2e-5), key
    return grads


@pytest.mark.parametrize("name", NETS)
def test_gradients_of_small_nets(name):
    # Reuse is where reverse mode goes wrong: every use of a value or a weight must be summed.
    body, out = NETS[name]
    net = lamina.loads(FLAT.format(out=out, body=body)).M()
    rng = np.random.default_rng(1)
    grads = direction_check(net, "mse(y, t)", {
        "x": rng.standard_normal((5, 3)).astype(np.float32),
        "t": rng.standard_normal((5, out)).astype(np.float32)})
    if name.startswith("shared"):
        assert set(grads) == {"f.weight", "f.bias"}


def test_gradients_of_tied_weights():
    # `tie`: one array under one name, with the sum of both uses' gradients.
    text = """model M {
  input word: i32[B]
  h = word -> emb: embed(6, 4) -> tanh
  output logits = h -> head: linear(6, bias=false)
  tie head.weight = emb.weight
}
"""
    net = lamina.loads(text).M()
    assert list(net.parameters) == ["emb.weight"]
    grads = direction_check(net, "cross_entropy(logits, label)", {
        "word": np.array([0, 3, 3, 5], np.int32), "label": np.array([1, 3, 2, 0], np.int32)})
    assert set(grads) == {"emb.weight"}


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_gradients_with_batchnorm_and_dropout(p):
    # In training, batch-norm's statistics depend on the weights, and dropout's mask is fixed by
    # the seed and step that are given.
    net = lamina.loads(MIXED.replace("0.25", str(p))).Mixed()
    inputs = {"image": pictures(4), "label": np.array([0, 1, 2, 1], np.int32)}
    if p:
        inputs["rng"] = np.array([1, 5], np.int32)
    grads = direction_check(net, "cross_entropy(logits, label)", inputs)
    assert "bn.running_mean" not in grads


def test_random_numbers_are_asked_for(mixed):
    # Nothing is random behind the caller's back.
    grad = mixed.value_and_grad("cross_entropy(logits, label)", target="numpy")
    inputs = {"image": pictures(3), "label": np.array([0, 1, 2], np.int32)}
    with pytest.raises(KeyError, match=r"rng=np\.array\(\[seed, step\]"):
        grad(mixed.init(0), **inputs)
    losses = [float(grad(mixed.init(0), **inputs, rng=np.array([seed, 1], np.int32))[0])
              for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_training_and_evaluation_differ(mixed):
    # `train` chooses what batch-norm and dropout compute.
    weights, image = mixed.init(0), pictures(4)
    steady = mixed.compile(target="numpy")(weights, image=image)
    trained = mixed.compile(target="numpy", train=True)(
        weights, image=image, rng=np.array([0, 1], np.int32))
    assert set(steady) == set(trained) == {"logits"}
    assert not np.allclose(steady["logits"], trained["logits"])


def test_kernels_give_the_same_gradients(mixed):
    # The compiled gradient is the reference's, also after a change of the batch.
    grads = {target: mixed.value_and_grad("cross_entropy(logits, label)", target=target)
             for target in ("cpu", "numpy")}
    for batch in (4, 2, 9):
        inputs = {"image": pictures(batch), "label": (np.arange(batch) % 3).astype(np.int32),
                  "rng": np.array([1, batch], np.int32)}
        (loss, ours), (other, theirs) = (
            grads[t](mixed.init(0), **inputs) for t in ("cpu", "numpy"))
        assert float(loss) == pytest.approx(float(other), rel=1e-5)
        assert set(ours) == set(theirs)
        for key in ours:
            assert np.allclose(ours[key], theirs[key], atol=1e-5), key


@pytest.mark.parametrize(("loss", "code", "column"), [
    ("cross_entropi(logits, label)", "E301", 1),
    ("cross_entropy(logit, label)", "E301", 15),
    ("cross_entropy(logits, label", "E103", 14),
    ("logits", "E501", 1),
])
def test_wrong_losses(mixed, loss, code, column):
    # The loss is text too: its errors point into it.
    with pytest.raises(lamina.CompileError) as caught:
        mixed.value_and_grad(loss)
    found = caught.value.diagnostics[0]
    assert (found.code, found.span.column) == (code, column)
    assert "given" not in str(caught.value)


# --- PyTorch's names and layouts ----------------------------------------------------------------

LAYERS = {
    "conv": ("  input x: f32[B, 4, 7, 9]\n  output y = x -> l: conv(6, kernel=3, stride=2, "
             "padding=1, groups=2)", (2, 4, 7, 9),
             lambda nn: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)),
    "conv1": ("  input x: f32[B, 4, 9]\n  output y = x -> l: conv1(6, kernel=3, dilation=2)",
              (2, 4, 9), lambda nn: nn.Conv1d(4, 6, 3, dilation=2)),
    "linear": ("  input x: f32[B, 5, 4]\n  output y = x -> l: linear(3)", (2, 5, 4),
               lambda nn: nn.Linear(4, 3)),
    "embed": ("  input x: i32[B, 5]\n  output y = x -> l: embed(11, 3)", (2, 5),
              lambda nn: nn.Embedding(11, 3)),
    "batchnorm": ("  input x: f32[B, 4, 3, 3]\n  output y = x -> l: batchnorm", (2, 4, 3, 3),
                  lambda nn: nn.BatchNorm2d(4)),
    "layernorm": ("  input x: f32[B, 5, 4]\n  output y = x -> l: layernorm", (2, 5, 4),
                  lambda nn: nn.LayerNorm(4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_pytorch_weights_load_by_name(name):
    # The promise of known weights: a state dict goes in under its own names, as it is.
    torch = pytest.importorskip("torch", reason="PyTorch's own modules are the oracle")
    body, shape, make = LAYERS[name]
    torch.manual_seed(3)
    module = torch.nn.Sequential()
    module.add_module("l", make(torch.nn))
    for key, value in module.state_dict().items():
        if value.dtype.is_floating_point:  # no default may hide a mistake
            value.copy_(torch.rand_like(value) + 0.25)
        else:
            assert key.endswith("num_batches_tracked")
    net = lamina.loads(f"model M {{\n{body}\n}}\n").M()
    weights = {key: value.numpy() for key, value in module.state_dict().items()}
    known = {key: weights[key] for key in net.parameters}
    assert set(weights) - set(known) <= {"l.num_batches_tracked"}
    rng = np.random.default_rng(0)
    x = rng.integers(0, 11, shape).astype(np.int32) if name == "embed" else \
        rng.standard_normal(shape).astype(np.float32)
    theirs = module.eval()(torch.tensor(x)).detach().numpy()
    assert np.allclose(net.compile(target="numpy")(known, x=x)["y"], theirs, atol=1e-5)


def test_readme_example_runs():
    # The first code that a reader copies.
    text = (Path(lamina.__file__).parent / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0].replace('target="cpu"', 'target="numpy"')
    names: dict = {}
    exec(code, names)
    image = np.zeros((2, 1, 32, 32), np.float32)
    assert names["run"](names["weights"], image=image)["logits"].shape == (2, 10)


def test_indices_outside_their_table_are_refused():
    """A label of 10 among 10 classes would lower the loss and say nothing."""
    text = """model M {
  input token: i32[B]
  output logits = token -> embed(7, 4) -> linear(3)
}
"""
    net = lamina.loads(text).M()
    weights = net.init(0)
    for target in ("cpu", "numpy"):
        run = net.compile(target=target)
        assert run(weights, token=np.array([0, 6]))["logits"].shape == (2, 3)  # int64 is converted
        for token in (7, -1):
            with pytest.raises(ValueError, match=f"holds {token}; its values run from 0 to 6"):
                run(weights, token=np.array([0, token], np.int32))
        grad = net.value_and_grad("cross_entropy(logits, label)", target=target)
        with pytest.raises(ValueError, match="'label' holds 3; its values run from 0 to 2"):
            grad(weights, token=np.array([0, 1]), label=np.array([0, 3]))


def test_seeds_are_whole_numbers():
    """Anything else would make weights that no one can make again."""
    net = lamina.load("lenet5").LeNet5()
    for seed in ("a", 1.5, -1, True):
        with pytest.raises(ValueError, match="a seed is a whole number"):
            net.init(seed=seed)


def test_things_say_what_they_are():
    """A prompt shows the repr, and completion the directory."""
    file = lamina.load("lenet5")
    assert repr(file) == "<File with models: LeNet5; recipes: digits, fashion>"
    assert repr(file.LeNet5()) == "<LeNet5: image: f32[B, 1, 32, 32] -> logits: f32[B, 10]>"
    assert repr(file.LeNet5().graph).startswith("<Graph LeNet5 of ")
    assert "load" in dir(lamina)


def test_a_zoo_recipe_reads_the_users_data(tmp_path):
    """Relative paths start at one's own file; a recipe that ships starts where one works."""
    assert lamina.load("unet").recipe("emoji").job().folder == "."
    own = tmp_path / "own.lam"
    own.write_text('from "unet.lam" import UNetSame\n\n'
                   'recipe cells for UNetSame(channels=3, classes=1) {\n'
                   '  data train = pairs("a", "b") -> center_crop(256)\n'
                   '  target mask: f32[B, 1, 256, 256]\n'
                   '  loss      = dice(logits, mask)\n'
                   '  optimizer = sgd(lr=0.1)\n}\n')
    assert lamina.load(own).recipe().job().folder == str(tmp_path)


@pytest.mark.parametrize(("loss", "weigh"), [
    ("cross_entropy(logits, tag, axis=-1)", "S~"), ("cross_entropy(whole, kind)", ""),
    ("mean(x * x)", "S~"), ("0.5 * cross_entropy(whole, kind) + mse(means, given)", ""),
])
def test_what_a_batch_weighs(loss, weigh):
    # Means over tokens are averaged by tokens, whether the gold tokens are a target or an input.
    file = lamina.loads(f"""model M {{
  input x: f32[B, S~, 4]
  input given: f32[B, 4]
  means = mean(x, axis=S)
  output logits = x -> linear(3), whole = means -> head: linear(2), means
}}

recipe fit for M {{
  data train = arrays("a.npz", x="x", given="g", tag="t", kind="k")
  target tag: i32[B, S~]
  target kind: i32[B]
  loss      = {loss}
  optimizer = sgd(lr=0.1)
}}
""")
    assert file.recipe("fit").job().weigh == weigh


def test_metrics_that_are_errors_are_kept_where_they_are_least():
    # "best" of an error was its largest value, and 0.3 degrees were shown as 30 %.
    text = """model M {
  input x: f32[B, 4]
  output y = x -> linear(1)
}

recipe fit for M {
  data train = arrays("x.npz", x="x", t="t")
  target t: f32[B, 1]
  loss         = mse(y, t)
  metric off   = l1(y * 2.0, t * 2.0)
  metric right = mean(cast(y > t, dtype="f32"))
  optimizer    = sgd(lr=0.1)
  keep         = best(KEPT)
}
"""
    training = lamina.loads(text.replace("KEPT", "off")).recipe()
    assert training.errors == ("off",) and not training.job().keep.larger
    assert lamina.loads(text.replace("KEPT", "right")).recipe().job().keep.larger
