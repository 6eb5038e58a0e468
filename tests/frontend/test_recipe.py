"""Recipes: every setting and its default, overrides, phases, patterns, and each error's words."""

import numpy as np
import pytest

from lamina.api import Training
from lamina.commands.checking import check_file
from lamina.compiler.errors import CompileError
from lamina.compiler.frontend.library import load_text
from lamina.compiler.frontend.recipe import (
    SCHEDULES,
    find_recipe,
    matches,
    parse_value,
    read_recipe,
)
from lamina.compiler.ops.optim import OPTIMIZERS
from lamina.compiler.syntax import ast
from lamina.runtime import schedule as schedules
from lamina.runtime.job import Keep, check_job

MODEL = """model Small(hidden: int = 16, classes: int = 10) {
  input image: f32[B, 1, 28, 28]
  output logits = image -> flatten -> fc: linear(hidden) -> relu
    -> tail: repeat 2 { linear(hidden) -> relu } -> head: linear(classes)
}
"""
NEEDED = {"data train": 'data train = mnist("train") -> shuffle',
          "target": "target label: i32[B]",
          "loss": "loss = cross_entropy(logits, label)",
          "optimizer": "optimizer = sgd(lr=0.1)"}


def text(*lines, model="Small", without=()):
    """A file with a recipe: what every recipe needs, and some lines more."""
    written = [line for key, line in NEEDED.items() if key not in without]
    return MODEL + f"recipe fit for {model} {{\n  " + "\n  ".join([*written, *lines]) + "\n}\n"


def read(source, **overrides):
    """The recipe of a file, read."""
    module = load_text(source, "test.lam")
    return read_recipe(module, find_recipe(module, None), overrides)


def training(source, **overrides):
    """The recipe of a file, ready to train."""
    module = load_text(source, "test.lam")
    return Training(module, read_recipe(module, find_recipe(module, None), overrides))


def mistakes(source, **overrides):
    """(code, message, help, text of the place) of each diagnostic of reading a recipe."""
    with pytest.raises(CompileError) as caught:
        read(source, **overrides)
    return [(d.code, d.message, d.help, d.span.text) for d in caught.value.diagnostics]


# --- settings -----------------------------------------------------------------------------------


def test_defaults():
    # A recipe says four things; the rest has a value that is documented.
    recipe = read(text())
    (phase,) = recipe.phases
    assert (recipe.name, recipe.model.name, recipe.batch, recipe.seed) == ("fit", "Small", 32, 0)
    assert (recipe.keep, recipe.clip, recipe.weights) == ("", 0.0, ())
    assert (phase.name, phase.epochs, phase.schedule, phase.rules) == ("train", 1, None, ())
    assert list(recipe.data) == ["train"]


def test_every_setting_reaches_the_job():
    # What is written is what trains: nothing on the way drops a setting.
    job = training(text('data valid = mnist("test")', "metric acc = accuracy(logits, label)",
                        "schedule = cosine(warmup=7, final=0.25)", "batch = 8", "epochs = 3",
                        "seed = 11", "keep = best(acc)", "clip = 2")).job()
    (phase,) = job.phases
    assert (job.batch, job.seed, job.metrics) == (8, 11, ("acc",))
    assert job.keep == Keep("best", "acc", True)
    assert (phase.epochs, phase.lr) == (3, 0.1)
    assert (phase.schedule.name, dict(phase.schedule.kwargs)) == \
        ("cosine", {"warmup": 7, "final": 0.25})
    assert [stage.name for stage in job.train] == ["mnist", "shuffle"]
    assert [(stage.name, stage.args) for stage in job.valid] == [("mnist", ("test",))]
    assert [(one.key, one.dtype, one.limit) for one in job.inputs] == \
        [("image", "f32", 0), ("label", "i32", 10)]
    check_job(job)


def test_data_pipelines_keep_order_arguments_and_lines():
    # Order matters in a pipeline, and an error at run time has to find its line.
    recipe = read(text('data valid = mnist("test") -> pad(2) -> normalize(mean=0.5, std=[0.25])'))
    calls = [(call.name, call.args, call.settings) for call in recipe.data["valid"]]
    assert calls == [("mnist", ("test",), {}), ("pad", (2,), {}),
                     ("normalize", (), {"mean": 0.5, "std": (0.25,)})]
    assert {call.line for call in recipe.data["valid"]} == {11}


def test_constants_may_be_used():
    # A recipe sees the constants of its file, as the model does.
    assert read("const N = 4\n" + text("batch = N * 16")).batch == 64


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_with_every_setting(name):
    # The registry is the documentation: each name in it can be written, also by position.
    rule = OPTIMIZERS[name]
    settings = {"lr": 0.5, **{k: v for k, v in rule.attrs.items() if k != "lr"}}
    shown = ", ".join(f"{k}={_written(v)}" for k, v in settings.items())
    found = read(text(f"optimizer = {name}({shown})", without=["optimizer"]))
    assert {k: tuple(v) if isinstance(v, list) else v
            for k, v in found.phases[0].optimizer.settings.items()} == settings
    by_place = read(text(f"optimizer = {name}(0.25)", without=["optimizer"]))
    assert by_place.phases[0].optimizer.settings == {"lr": 0.25}


def _written(value):
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else repr(value)


def test_schedules_are_those_of_the_runtime():
    # Two lists of the same names once differed: `step` was refused and `steps` failed later.
    assert set(SCHEDULES) == set(schedules.SCHEDULES)


@pytest.mark.parametrize("call", ["constant", "cosine(warmup=3)", "linear(final=0.1)",
                                  "step(every=2)", "step(at=[3, 5], factor=0.5)"])
def test_every_schedule(call):
    # Each is accepted by the reader and by the runtime's check.
    job = training(text(f"schedule = {call}", "epochs = 6")).job()
    check_job(job)
    assert job.phases[0].schedule.name == call.partition("(")[0]


@pytest.mark.parametrize(("line", "kept"), [
    ("keep = last", Keep()), ("keep = best(loss)", Keep("best", "loss", False)),
    ("keep = best(acc)", Keep("best", "acc", True))])
def test_keep(line, kept):
    # A loss is best when small, a metric when large.
    job = training(text("metric acc = accuracy(logits, label)", line)).job()
    assert job.keep == kept


# --- overrides ----------------------------------------------------------------------------------


def test_overrides_of_all_kinds():
    # `-o` reaches the recipe, its optimizer and its model by plain names.
    found = training(text("epochs = 9"), epochs="2", batch="5", seed="3", lr="1e-3",
                     momentum="0.5", hidden="4", schedule="step(every=1)", clip="1.5")
    (phase,) = found.recipe.phases
    assert (phase.epochs, found.recipe.batch, found.recipe.seed) == (2, 5, 3)
    assert phase.optimizer.settings == {"lr": 0.001, "momentum": 0.5}
    assert (phase.schedule.name, found.recipe.clip) == ("step", 1.5)
    assert found.net.parameters["fc.weight"].shape == (4, 784)
    assert phase.schedule.line == 0  # not a line of the file


def test_an_override_of_the_optimizer_comes_before_its_settings():
    # Both together mean: this optimizer, with that rate.
    (phase,) = read(text(), optimizer="adam(lr=1)", lr="0.25").phases
    assert (phase.optimizer.name, phase.optimizer.settings) == ("adam", {"lr": 0.25})


def test_overrides_of_model_settings_win_over_the_recipe():
    # `recipe fit for Small(hidden=8)` is a default too.
    source = text(model="Small(hidden=8)")
    assert training(source).net.parameters["fc.bias"].shape == (8,)
    assert training(source, hidden="6").net.parameters["fc.bias"].shape == (6,)


@pytest.mark.parametrize(("written", "value"), [
    ('"a b"', "a b"), ("data/train", "data/train"), ("../x", "../x"),
    ("/abs/x.npz", "/abs/x.npz"), ("my-file.npz", "my-file.npz"), ("~/x", "~/x")])
def test_texts_of_overrides(written, value):
    # A path needs no second pair of quotes inside the shell's.
    tree = parse_value("key", written)
    assert isinstance(tree, ast.String)
    assert tree.value == value


@pytest.mark.parametrize(("written", "value"), [("3", 3), ("1e-3", 0.001), ("4 / 8", 0.5),
                                                ("0", 0)])
def test_numbers_of_overrides(written, value):
    # Numbers stay numbers, and may be computed.
    assert read(text(), clip=written).clip == value


def test_negative_numbers_are_no_paths():
    # `-3` once was taken for a text with a dash.
    assert mistakes(text(), seed="-3")[0][1].endswith("not the number -3")


@pytest.mark.parametrize(("overrides", "code", "message", "help", "place"), [
    ({"hiden": "8"}, "E502", "there is no setting `hiden` to override",
     "did you mean `hidden`?", "hiden"),
    ({"data": "3"}, "E502", "there is no setting `data` to override",
     "settings: loss, optimizer, schedule, batch, epochs, seed, keep, clip, lr, momentum, "
     "weight_decay, nesterov, hidden, classes", "data"),
    ({"batch": "0"}, "E503", "`batch` must be a whole number of at least 1, not the number 0",
     None, "0"),
    ({"batch": "1.5"}, "E503", "`batch` must be a whole number of at least 1, not the number 1.5",
     None, "1.5"),
    ({"lr": "abc"}, "E503", "lr must be a number, as in lr=0.01", None, "abc"),
    ({"lr": "-inf"}, "E503", "lr must be a number, as in lr=0.01", None, "inf"),
    ({"batch": "all"}, "E503", "batch must be a whole number, as in batch=32", None, "all"),
    ({"hidden": "abc"}, "E503", "hidden must be a whole number, as in hidden=10", None, "abc"),
    ({"lr": "-1"}, "E503", "`lr` must be at least 0 and finite, not the number -1", None, "-1"),
    ({"momentum": '"x"'}, "E503", '`momentum` must be a number, not the text "x"', None, '"x"'),
    ({"optimizer": "adm(lr=1)"}, "E503", "no optimizer is named `adm`", "did you mean `adam`?",
     "adm(lr=1)"),
    ({"optimizer": "adam(lr=1, betas=[-1, 0.5])"}, "E503",
     "`betas` must be two numbers from 0 to below 1, not a list of 2", None,
     "betas=[-1, 0.5]"),
    ({"keep": "best(ac)"}, "E503", "`keep` names no metric: `ac`", "metrics: none", "ac"),
    ({"clip": "-1"}, "E503", "`clip` must be a number of at least 0, not the number -1", None,
     "-1"),
    ({"lr": "1 2"}, None, None, None, None),
    ({"lr": "1\nconst x = 2"}, "E503", "`1\nconst x = 2` is not one value", None, None),
])
def test_wrong_overrides(overrides, code, message, help, place):
    # Each points into what was typed: at the key where the key is wrong, else at the value.
    found = mistakes(text(), **overrides)
    assert len(found) == 1
    if code is not None:
        assert found[0][:3] == (code, message, help)
    if place is not None:
        assert found[0][3] == place


# --- phases -------------------------------------------------------------------------------------

PHASES = """freeze "fc.bias"
  phase head  { freeze "**" except "head.**"; optimizer = adamw(lr=1e-3); epochs = 2 }
  phase upper { unfreeze "tail.*.**"; epochs = 3; schedule = constant }
  phase whole { unfreeze "**" }"""


def phased(**overrides):
    return training(text(PHASES, "schedule = cosine", "epochs = 5"), **overrides)


def test_phases_inherit_what_they_do_not_say():
    # The recipe's own optimizer, schedule and epochs are the phases' defaults.
    found = [(p.name, p.epochs, p.optimizer.name, p.schedule.name) for p in phased().recipe.phases]
    assert found == [("head", 2, "adamw", "cosine"), ("upper", 3, "sgd", "constant"),
                     ("whole", 5, "sgd", "cosine")]


def test_freezing_adds_up_over_phases():
    # Progressive unfreezing: each phase starts from what the one before it left frozen.
    found = phased()
    keys = {f"{layer}.{part}" for layer in ("fc", "tail.0.linear", "tail.1.linear", "head")
            for part in ("weight", "bias")}
    assert set(found.net.parameters) == keys
    head = {"head.weight", "head.bias"}
    assert found.frozen(0) == keys - head
    assert found.frozen(1) == {"fc.weight", "fc.bias"}
    assert found.frozen(2) == set()
    updated = {name.removeprefix("update:") for name, _ in found.step(0).outputs
               if name.startswith("update:") and "optimizer/" not in name}
    assert updated == head


def test_overrides_of_one_phase():
    # Where phases differ, a key names the phase.
    phases = {p.name: p for p in phased(**{"head.lr": "0.5", "upper.epochs": "1",
                                           "whole.optimizer": "adam(lr=2)",
                                           "whole.schedule": "linear", "whole.eps": "1e-4",
                                           }).recipe.phases}
    assert phases["head"].optimizer.settings == {"lr": 0.5}
    assert phases["upper"].epochs == 1
    assert (phases["whole"].optimizer.name, phases["whole"].optimizer.settings) == \
        ("adam", {"lr": 2, "eps": 1e-4})
    assert phases["whole"].schedule.name == "linear"


def test_an_override_that_would_do_nothing_is_refused():
    # Every phase has its own value: replacing the default would change nothing, silently.
    source = text("phase a { optimizer = sgd(lr=1); epochs = 2 }",
                  "phase b { optimizer = sgd(lr=2); epochs = 3 }", without=["optimizer"])
    assert mistakes(source, epochs="1") == [
        ("E502", "every phase has its own `epochs`", "name the phase: -o a.epochs=...", "epochs")]
    assert mistakes(source, lr="1") == [
        ("E502", "there is no setting `lr` to override", "name the phase: -o a.lr=...", "lr")]
    assert mistakes(source, **{"a.ephocs": "1"})[0][:2] == \
        ("E502", "there is no setting `ephocs` to override")


@pytest.mark.parametrize(("pattern", "fits", "others"), [
    ("fc.weight", ["fc.weight"], ["fc.weights", "xfc.weight", "fcxweight"]),
    ("*.weight", ["fc.weight"], ["a.fc.weight", "weight"]),
    ("**", ["fc.weight", "a.b.c"], []),
    ("**.weight", ["fc.weight", "a.b.weight"], ["fc.bias"]),
    ("stages.*.**", ["stages.0.a", "stages.10.a.b"], ["stages.0"]),
    ("stages.1*.w", ["stages.1.w", "stages.12.w"], ["stages.21.w", "stages.1.2.w"]),
    ("head.**", ["head.weight", "head.a.b"], ["head", "ahead.weight"]),
])
def test_patterns(pattern, fits, others):
    # `*` stays within one part of a path, `**` crosses them; a dot is a dot.
    assert all(matches(pattern, key) for key in fits)
    assert not any(matches(pattern, key) for key in others)


def test_a_pattern_of_nothing_is_an_error():
    # A typo would silently train what was to be frozen.
    found = training(text('freeze "haed.**"'))
    with pytest.raises(CompileError) as caught:
        found.frozen(0)
    (one,) = caught.value.diagnostics
    assert (one.code, one.message, one.span.text) == \
        ("E506", 'no parameter matches "haed.**"', '"haed.**"')


def test_weights_rules_are_kept_in_order():
    # The first rule that fits wins, so their order is part of the meaning.
    (found,) = read(text('weights "a.safetensors" {', '  map "x.{i}.*" => "tail.{i}.*"',
                         '  skip "fc.*"', "}")).weights
    assert found.file.value == "a.safetensors"
    assert [type(rule).__name__ for rule in found.rules] == ["Map", "Skip"]
    assert (found.rules[0].source.value, found.rules[0].target.value) == ("x.{i}.*", "tail.{i}.*")


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "code", "message", "help"), [
    (text("batchs = 3"), "E502", "a recipe has no setting `batchs`", "did you mean `batch`?"),
    (text("frobnicate = 3"), "E502", "a recipe has no setting `frobnicate`",
     "settings: loss, optimizer, schedule, batch, epochs, seed, keep, clip"),
    (text('data test = mnist("test")'), "E502", "data is `train` or `valid`, not `test`", None),
    (text("phase a { batch = 3 }"), "E502", "a phase has no setting `batch`",
     "settings: optimizer, schedule, epochs"),
    (text('batch = "many"'), "E503",
     '`batch` must be a whole number of at least 1, not the text "many"', None),
    (text("batch = true"), "E503",
     "`batch` must be a whole number of at least 1, not the truth value true", None),
    (text("seed = -1"), "E503", "`seed` must be a whole number of at least 0, not the number -1",
     None),
    (text("schedule = cosin"), "E503", "no schedule is named `cosin`", "did you mean `cosine`?"),
    (text("schedule = 3"), "E503", "a call such as `name(1, key=2)` is expected here", None),
    (text("keep = first"), "E503", "`keep` is `best(METRIC)` or `last`", None),
    (text("optimizer = sgd", without=["optimizer"]), "E503", "`sgd` needs a learning rate",
     "write `sgd(lr=0.01)`"),
    (text("optimizer = sgd(lr=1, momentun=0.9)", without=["optimizer"]), "E503",
     "`sgd` has no setting `momentun`", "did you mean `momentum`?"),
    (text("optimizer = lion(lr=1)", without=["optimizer"]), "E503",
     "no optimizer is named `lion`", None),
    (text(without=["loss"]), "E504", "a recipe needs a loss",
     "write `loss = cross_entropy(logits, label)`"),
    (text(without=["optimizer"]), "E504", "a recipe needs an optimizer",
     "write `optimizer = sgd(lr=0.1)`"),
    (text("phase a { epochs = 2 }", without=["optimizer"]), "E504", "phase `a` needs an optimizer",
     "write `optimizer = sgd(lr=0.1)`"),
    (text(without=["data train"]), "E504", "a recipe needs data to train on",
     'write `data train = mnist("train") -> shuffle`'),
    (text("batch = 3", "batch = 4"), "E120", "`batch` is given twice", None),
    (text(model="Smal"), "E415", "no model is named `Smal`", "did you mean `Small`?"),
])
def test_words_of_errors(source, code, message, help):
    # What a user reads is part of the product: exactly one error, with these words.
    found = mistakes(source)
    assert [one[:2] for one in found] == [(code, message)]
    if help is not None:
        assert found[0][2] == help


def test_all_errors_of_a_recipe_at_once():
    # One run tells everything.
    found = mistakes(text("batch = 0", "epochs = 0", "schedule = x", "keep = best(y)", "what = 1"))
    assert [one[0] for one in found] == ["E503", "E503", "E503", "E503", "E502"]


@pytest.mark.parametrize(("name", "message", "help"), [
    ("fitt", "no recipe is named `fitt`", "did you mean `fit`?"),
    ("qqqqq", "no recipe is named `qqqqq`", "recipes here: fit")])
def test_unknown_recipes(name, message, help):
    # The file's recipes are told; a model's name finds its recipe.
    module = load_text(text())
    with pytest.raises(CompileError) as caught:
        find_recipe(module, name)
    (one,) = caught.value.diagnostics
    assert (one.code, one.message, one.help) == ("E505", message, help)
    assert find_recipe(module, "Small").name.id == "fit"


def test_the_help_for_a_file_without_recipe_works(tmp_path):
    # The line that is proposed can be pasted, with the output's name put in.
    with pytest.raises(CompileError) as caught:
        find_recipe(load_text(MODEL), None)
    help = caught.value.diagnostics[0].help
    line = help.split("`")[1].replace("OUTPUT", "logits")
    path = tmp_path / "m.lam"
    path.write_text(f"{MODEL}\n{line}\n")
    assert check_file(str(path)) == []


@pytest.mark.parametrize(("line", "code", "place"), [
    ('data valid = mnist("test") -> shufle', "E607", "shufle"),
    ('data valid = minst("test")', "E606", 'minst("test")'),
    ('data valid = mnist("test") -> normalize(meen=1)', "E608", "normalize(meen=1)"),
    ('data valid = pad(2) -> mnist("test")', "E613", "pad(2)"),
    ("schedule = cosine(warmup=-1)", "E608", "cosine(warmup=-1)"),
    ('freeze "none.**"', "E506", '"none.**"'),
    ("metric acc = accuracy(logit, label)", "E301", "logit"),
    ("metric acc = logits", "E501", "logits"),
])
def test_check_tells_before_any_file_is_opened(tmp_path, line, code, place):
    # `lamina check` finds what would otherwise stop a run minutes later, at the very word.
    path = tmp_path / "m.lam"
    path.write_text(text(line))
    assert [(d.code, d.span.text) for d in check_file(str(path))] == [(code, place)]


def test_the_same_recipe_has_the_same_fingerprint():
    # A run only goes on with the same text: every setting that changes bits changes it.
    base = tuple(training(text()).facts().items())
    assert tuple(training(text()).facts().items()) == base
    changed = [{"seed": "1"}, {"batch": "8"}, {"lr": "0.2"}, {"epochs": "2"}, {"hidden": "4"},
               {"clip": "1"}, {"schedule": "cosine"}, {"momentum": "0.5"}]
    found = {tuple(training(text(), **one).facts().items()) for one in changed}
    assert len(found | {base}) == len(changed) + 1
    assert training(text('freeze "fc.**"')).facts() != dict(base)


def test_initial_weights_follow_the_seed():
    # The seed of the recipe, overridden or not, decides where training starts.
    first, second = (training(text(), seed=seed).initial() for seed in ("1", "2"))
    assert not np.array_equal(first["fc.weight"], second["fc.weight"])
    assert np.array_equal(first["fc.weight"], training(text("seed = 1")).initial()["fc.weight"])


def test_check_tells_every_mistake_of_a_recipe_in_one_run(tmp_path):
    # Whoever mends one mistake must not meet the next in the next run.
    path = tmp_path / "all.lam"
    path.write_text(MODEL + """recipe fit for Small {
  data train = minst("train") -> shufle -> normalise(mean=0.1) -> pad(abc)
  loss = cross_entrpy(logits, label)
  metric acc = acuracy(logts, label)
  optimizer = sgd(lrr=0.1, momentum=-1, lr=0.1)
  freeze "hed.*"
}
""")
    found = [(d.code, d.span.text) for d in check_file(str(path))]
    assert found == [
        ("E606", 'minst("train")'), ("E607", "shufle"), ("E607", "normalise(mean=0.1)"),
        ("E301", "abc"), ("E301", "cross_entrpy"), ("E301", "acuracy"), ("E301", "logts"),
        ("E503", "lrr=0.1"), ("E503", "momentum=-1"), ("E506", '"hed.*"')]


def test_a_recipe_for_an_unknown_model_lists_the_models():
    # Without a near name the help names what there is.
    ((code, message, help, place),) = mistakes(text(model="Zebra"))
    assert (code, message, place) == ("E415", "no model is named `Zebra`", "Zebra")
    assert help == "models here: Small"
