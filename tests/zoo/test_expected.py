"""The zoo against the figures of the papers, exactly."""

import pytest

from lamina.api import Net
from lamina.commands.selection import select_net
from lamina.compiler.frontend.library import load_path, zoo_folder, zoo_models
from lamina.compiler.inspect.cost import summarize
from lamina.compiler.inspect.receptive_field import last_local
from lamina.tests.zoo.facts import EXPECTED, ending_of, facts_of_models, texts_of


@pytest.mark.parametrize(("file", "model", "facts"), facts_of_models(), ids=lambda x: str(x)[:20])
def test_figures(file, model, facts):
    # A wrong count is the commonest fault of such tools; ours come from the graph and are exact.
    summary = select_net(file, model, {}, texts_of(facts)).summary()
    assert summary.parameters == facts["parameters"]
    assert summary.macs == facts["macs"]
    field = last_local([row.fields for row in summary.layers])
    axes = field.axes if field else ()
    assert {(axis.size, axis.stride) for axis in axes} == ending_of(facts)


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
