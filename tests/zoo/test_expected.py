"""The zoo against the figures of the papers, exactly."""

import tomllib

import pytest

from lamina.api import Net
from lamina.commands.selection import select_net
from lamina.compiler.frontend.library import load_path, zoo_folder, zoo_models
from lamina.compiler.inspect.cost import summarize
from lamina.compiler.inspect.receptive_field import last_local

EXPECTED = tomllib.loads((zoo_folder() / "expected.toml").read_text())
CASES = [(file, model, facts) for file, models in EXPECTED.items()
         for model, facts in models.items()]


@pytest.mark.parametrize(("file", "model", "facts"), CASES, ids=lambda x: str(x)[:20])
def test_figures(file, model, facts):
    # A wrong count is the commonest fault of such tools; ours come from the graph and are exact.
    name, _, size = facts["input"].partition("=")
    summary = select_net(file, model, {}, {name: size}).summary()
    assert summary.parameters == facts["parameters"]
    assert summary.macs == facts["macs"]
    field = last_local([row.fields for row in summary.layers])
    assert {(axis.size, axis.stride) for axis in field.axes} == {(facts["field"], facts["stride"])}


def test_every_model_is_expected():
    # A model enters the zoo with its figures.
    for file in zoo_models():
        module = load_path(zoo_folder() / f"{file}.lam")
        assert set(module.models) == set(EXPECTED[file])


def test_totals_are_the_sums_of_the_rows():
    # What a layer adds is told once, at that layer.
    for file in zoo_models():
        module = load_path(zoo_folder() / f"{file}.lam")
        for definition in module.models.values():
            summary = summarize(Net(module, definition).graph)
            assert sum(row.parameters for row in summary.layers) == summary.parameters
            assert sum(row.macs for row in summary.layers) == summary.macs
