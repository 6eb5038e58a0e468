"""Settings, variants, files, choice: what a definition becomes when it is used."""

import pytest

from lamina.compiler.errors import CompileError
from lamina.compiler.frontend.build import build, settings_call
from lamina.compiler.frontend.library import load_path, load_text
from lamina.tests.frontend.building import codes, made, model, paths, types

WIDE = "model M(a: int = 2, b: int = a + 1) {\n input x: f32[B, 8]\n" \
       " output y = x -> linear(a), z = x -> linear(b)\n}\n"  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "sizes"),
    [("", (2, 3)), ("model N = M(a=5)", (5, 6)), ("model N = M(b=5)", (2, 5)),
     ("model A = M(a=4)\nmodel N = A(b=7)", (4, 7)),
     ("model A = M(a=4)\nmodel N = A(a=9)", (9, 10)),
     ("model N = A(b=1)\nmodel A = M(a=4)", (4, 1)), ("const K = 6\nmodel N = M(a=K)", (6, 7))],
)  # fmt: skip
def test_variants(variant, sizes):
    """Defaults may use earlier settings; a variant overrides them, and variants stack."""
    name = "N" if variant else "M"
    found = types(WIDE + variant, name)
    assert found == {"y": f"f32[B, {sizes[0]}]", "z": f"f32[B, {sizes[1]}]"}


def test_settings_from_outside_come_last():
    """A command line overrides the variant, in any order and of any type."""
    module = load_text(WIDE + "model N = M(a=5)")
    built = build(module, module.models["N"], settings_call("N", {"b": 4, "a": 3}))
    assert [str(built.graph.type(v)) for _, v in built.graph.outputs] == ["f32[B, 3]", "f32[B, 4]"]


def test_positional_settings_are_in_the_order_of_declaration():
    """And a pair stands for height and width where a number is declared."""
    text = model("output y = x -> conv(4, (3, 5), (1, 2), 1)", input="input x: f32[B, 3, 8, 8]")
    assert types(text) == {"y": "f32[B, 4, 8, 3]"}


def test_an_optional_input():
    """An input with a default may be left out."""
    block = "block A {\n input x: [B, D]\n input k: [B, D] = x * 2\n output y = x + k\n}"
    assert codes(model("output y = x -> A, z = (x, x) -> A", block)) == []


def test_a_model_is_a_block_of_another():
    """A backbone is used like any layer; its paths start at its stage."""
    inner = "model Back {\n input x: f32[B, D]\n output y = x -> fc: linear(4, bias=false)\n}\n"
    assert paths(model("output y = x -> back: Back -> head: linear(2, bias=false)", inner)) == [
        "back.fc.weight", "head.weight"]  # fmt: skip


@pytest.mark.parametrize("chain", [["A"], ["A", "B"], ["A", "B", "C"]])
def test_recursion_is_refused(chain):
    """Direct and mutual recursion end with an error, not with a full stack."""
    blocks = "\n".join(
        f"block {name}1 {{\n input x: [B, D]\n output y = x -> {after}1\n}}"
        for name, after in zip(chain, chain[1:] + chain[:1], strict=True))
    assert codes(model("output y = x -> A1", blocks)) == ["E402"]


def test_recursion_through_a_layer_argument():
    """A block that is given itself."""
    block = "block A(f: layer) {\n input x: [B, D]\n output y = x -> f\n}"
    assert codes(model("output y = x -> A(A(A(relu)))", block)) in ([], ["E402"])


def test_only_the_chosen_branch_is_built():
    """Else a model would hold weights that it never uses, and errors that never happen."""
    body = "output y = (x -> a: linear(4)) if %s else (x -> b: linear(4, oops=1))"
    assert paths(model(body % "1 + 1 == 2")) == ["a.weight", "a.bias"]
    assert codes(model(body % "1 + 1 == 3")) == ["E409"]


def test_and_or_stop_early():
    """`C % 2 == 0` is not asked where the first part decides."""
    body = "assert true or 1 / 0 == 1\n assert not (false and 1 / 0 == 1)\n output y = x"
    assert codes(model(body)) == []


def test_constants_and_imports(tmp_path):
    """Definitions bring the constants of their own file with them."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.lam").write_text(
        'from "b.lam" import N\nblock A {\n input x: [B, D]\n output y = x -> linear(N)\n}\n')
    (tmp_path / "parts" / "b.lam").write_text("const N = 2 * K\nconst K = 3\n")
    text = 'from "parts/a.lam" import A as Part\nfrom "parts/b.lam" import K\nconst N = 99\n'
    (tmp_path / "m.lam").write_text(text + model("output y = x -> Part -> linear(K)"))
    module = load_path(tmp_path / "m.lam")
    for _ in range(2):  # a module can be built any number of times
        graph = build(module, module.models["M"]).graph
        assert [tuple(graph.type(v).shape) for v in graph.params.values()] == [
            (6, 8), (6,), (3, 6), (3,)]  # fmt: skip


def test_a_failed_build_fails_again():
    """Errors are not remembered as success: the second build of a module reports them too."""
    module = load_text("const N = oops\n" + model("output y = x -> linear(N)"))
    for _ in range(2):
        with pytest.raises(CompileError) as caught:
            build(module, module.models["M"])
        assert [one.code for one in caught.value.diagnostics] == ["E301"]


def test_files_in_diamonds_are_read_once(tmp_path):
    """2 ** 40 readings would never end."""
    for level in range(40):
        (tmp_path / f"f{level}.lam").write_text(
            f'from "f{level + 1}.lam" import A as C1, A as C2\n'
            f'from "f{level + 1}.lam" import A as C3\n'
            "block A {\n input x: [B, D]\n output y = x -> C1\n}\n")
    (tmp_path / "f40.lam").write_text("block A {\n input x: [B, D]\n output y = x -> relu\n}\n")
    assert list(load_path(tmp_path / "f0.lam").definitions) == ["A"]


@pytest.mark.parametrize("name", ["missing.lam", "x" * 5000, "", ".", "a\\u0000b", "/dev/null"])
def test_odd_file_names(tmp_path, name):
    """A file name can be anything; the answer is a located error."""
    (tmp_path / "m.lam").write_text(f'from "{name}" import A\n' + model("output y = x -> A"))
    with pytest.raises(CompileError) as caught:
        module = load_path(tmp_path / "m.lam")
        build(module, module.models["M"])
    assert len(caught.value.diagnostics) == 1


def test_a_long_chain_of_files_is_refused(tmp_path):
    """Deep recursion in the loader would end the process."""
    for level in range(200):
        (tmp_path / f"f{level}.lam").write_text(f'from "f{level + 1}.lam" import A\n')
    with pytest.raises(CompileError) as caught:
        load_path(tmp_path / "f0.lam").sink.raise_if_any()
    assert caught.value.diagnostics[0].code == "E900"


def test_deep_blocks_are_refused():
    """Blocks inside blocks, without recursion, but too deep for any stack."""
    blocks = "\n".join(f"block A{n} {{\n input x: [B, D]\n output y = x -> A{n + 1}\n}}"
                       for n in range(300))
    last = "block A300 {\n input x: [B, D]\n output y = x\n}"
    assert codes(model("output y = x -> A0", blocks + "\n" + last)) in (["E402"], ["E900"])


def test_too_many_operators_are_refused():
    """A typing error in a count must not fill the memory."""
    body = "output y = x -> repeat 9000 { repeat 9000 { relu -> tanh } }"
    assert codes(model(body)) == ["E901"]


def test_training_chooses_dropout():
    """Dropout is a random operator in training, and nothing at all otherwise."""
    text = model("output y = x -> dropout(0.3) -> d: dropout(0.3)")
    assert [n.op.name for n in made(text).graph.nodes] == ["input"]
    graph = made(text, training=True).graph
    salts = [n.attributes["salt"] for n in graph.nodes if "salt" in n.attributes]
    assert len(salts) == len(set(salts)) == 2
