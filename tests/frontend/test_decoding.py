"""`choose` and `until`: the parts of a decoding scan, and the policies that run them."""

import itertools
from pathlib import Path

import numpy as np
import pytest

import lamina
from lamina.compiler.errors import CompileError
from lamina.runtime.decoding import Policy

ROOT = Path(__file__).parents[2]
SEQ2SEQ = (ROOT / "tests" / "syntax" / "examples" / "seq2seq.lam").read_text("utf-8")
# A small speller; `marked` depends on the chosen token, so a part of the step comes after it.
SPELLER = """cell Next(tokens: int) {
  input gold: i32[B]
  memory text: [B, S~, E]
  state h: [B, 6]     = 0
  state n: i32[B]     = 0
  state tok: i32[B]   = 1
  h      = tanh((prev.tok -> emb: embed(tokens, 6)) + (prev.h -> back: linear(6))
    + (mean(text, axis=S) -> more: linear(6)))
  logits = (h -> out: linear(tokens)) * 2
  tok    = choose(logits, gold)
  n      = prev.n + tok
  marked = tok -> mark: embed(tokens, 3)
  output logits, tok, marked, n
}

model M {
  input text: f32[B, S~, 4]
  input said: i32[B, T~]
  y = said -> scan Next(5) over T with (text = text) until tok == 2 limit 6
  output logits = y.logits, tokens = y.tok, marks = y.marked * 2, sums = y.n, last = y.final.h
}
"""


@pytest.fixture(scope="module")
def speller():
    net = lamina.loads(SPELLER).M()
    weights = {key: value * 2.5 for key, value in net.init(4).items()}
    rng = np.random.default_rng(0)
    return net, weights, [rng.standard_normal((n, 4)).astype(np.float32) for n in (3, 1, 6, 2)]


POLICIES = [Policy(), Policy("sample", seed=5), Policy("sample", temperature=0.7, top_k=3),
            Policy("sample", top_p=0.8, seed=1), Policy("beam", width=3),
            Policy("beam", width=1, penalty=0.0)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("target", ["numpy", "cpu"])
def test_what_is_decoded_is_what_training_would_see(speller, policy, target):
    # The chosen tokens as gold give the same outputs: the parts of the step are the whole step.
    net, weights, text = speller
    found = net.decoder(target)(weights, text=text, policy=policy)
    said = [row[:n] for row, n in zip(found["tokens"], found["lengths"], strict=True)]
    whole = net.compile("numpy")(weights, text=text, said=said)
    for name in ("logits", "tokens", "marks", "sums", "last"):
        assert np.abs(found[name] - whole[name]).max() < 1e-5, name
    logp = whole["logits"] - np.log(np.exp(whole["logits"]).sum(-1, keepdims=True))
    for row, tokens, score in zip(logp, said, found["score"], strict=True):
        assert score == pytest.approx(sum(row[i, t] for i, t in enumerate(tokens)), abs=1e-4)
    for tokens in said:
        assert 2 not in tokens[:-1] and (len(tokens) == 6 or tokens[-1] == 2)


def test_greedy_takes_the_most_likely(speller):
    net, weights, text = speller
    found = net.decoder("numpy")(weights, text=text)
    for row, tokens, n in zip(found["logits"], found["tokens"], found["lengths"], strict=True):
        assert (row[:n].argmax(-1) == tokens[:n]).all()
    one = net.decoder("numpy")(weights, text=text, policy=Policy("sample", top_k=1))
    np.testing.assert_array_equal(one["tokens"], found["tokens"])


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_the_best_of_all(speller, penalty):
    # Against every sequence of up to three tokens: 5 + 25 + 125 candidates.
    net, weights, text = speller
    found = net.decoder("numpy")(weights, text=text[:1], limit=3,
                                 policy=Policy("beam", width=130, penalty=penalty))
    whole, best = net.compile("numpy"), (-np.inf, ())
    for tokens in itertools.product(range(5), repeat=3):
        if 2 in tokens:
            tokens = tokens[:tokens.index(2) + 1]
        logits = whole(weights, text=text[:1], said=[list(tokens)])["logits"][0]
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        score = sum(logp[i, t] for i, t in enumerate(tokens))
        best = max(best, (score / ((5 + len(tokens)) / 6) ** penalty, tokens))
    n = int(found["lengths"][0])
    assert tuple(found["tokens"][0, :n]) == best[1]
    assert found["score"][0] / ((5 + n) / 6) ** penalty == pytest.approx(best[0], abs=1e-4)


def test_samples_follow_the_probabilities(speller):
    # The first token of many samples; 1,000 of them lie within three standard deviations.
    net, weights, text = speller
    many = [text[0]] * 1000
    found = net.decoder("numpy")(weights, text=many, limit=1, policy=Policy("sample", seed=3))
    share = np.exp(found["logits"][0, 0])
    share /= share.sum()
    counts = np.bincount(found["tokens"][:, 0], minlength=5)
    assert (np.abs(counts - 1000 * share) < 3 * np.sqrt(1000 * share * (1 - share)) + 1).all()
    kept = net.decoder("numpy")(weights, text=many, limit=1,
                                policy=Policy("sample", top_p=0.5))["tokens"]
    order = np.argsort(-share)
    enough = int(np.searchsorted(share[order].cumsum(), 0.5)) + 1
    assert set(kept.ravel()) == set(order[:enough])


def test_an_example_does_not_depend_on_the_others(speller):
    net, weights, text = speller
    for policy in POLICIES:
        together = net.decoder("cpu")(weights, text=text, policy=policy)
        alone = net.decoder("cpu")(weights, text=text[:1], policy=policy)
        n = int(alone["lengths"][0])
        assert n == together["lengths"][0]
        np.testing.assert_array_equal(alone["tokens"][0, :n], together["tokens"][0, :n])


def test_samples_go_by_the_number_of_an_example(speller):
    # A second batch that began again at 0 would repeat the first one's draws.
    net, weights, text = speller
    policy, same = Policy("sample", seed=2), [text[0]] * 8
    whole = net.decoder("numpy")(weights, text=same, policy=policy)
    later = net.decoder("numpy")(weights, text=same[:3], policy=policy, number=5)
    for row in range(3):
        n = int(later["lengths"][row])
        assert n == whole["lengths"][5 + row]
        np.testing.assert_array_equal(later["chosen"][row, :n], whole["chosen"][5 + row, :n])


def test_a_prompt_is_taken_as_it_is(speller):
    # Also where it holds the token that ends an example.
    net, weights, text = speller
    for kind in ("greedy", "beam"):
        found = net.decoder("numpy")(weights, text=text, policy=Policy(kind),
                                     prompt=[[3, 2, 0], [1], [], [4, 4]])
        for row, prompt in zip(found["tokens"], ([3, 2, 0], [1], [], [4, 4]), strict=True):
            assert list(row[:len(prompt)]) == prompt
    with pytest.raises(ValueError, match="token 9 of the prompt is outside 0 to 4"):
        net.decoder("numpy")(weights, text=text, prompt=[[9]] * 4)


def test_a_condition_that_never_holds_ends_at_the_limit(speller):
    _, weights, text = speller
    net = lamina.loads(SPELLER.replace("tok == 2", "tok == 77")).M()
    for policy in (Policy(), Policy("beam", width=2)):
        found = net.decoder("numpy")(weights, text=text, policy=policy)
        assert (found["lengths"] == 6).all()
    assert (net.decoder("numpy")(weights, text=text, limit=3)["lengths"] == 3).all()


def test_the_language_pages_seq2seq_decodes():
    # LANGUAGE.md's example as it stands: training sees gold tokens, decoding chooses.
    net = lamina.loads(SEQ2SEQ).Seq2Seq(src_vocab=20, tgt_vocab=15, hidden=8, att=4)
    assert set(net.decoder("numpy").inputs) == {"src", "S~"}
    weights, src = net.init(0), [[3, 4, 5], [6]]
    found = net.decoder("cpu")(weights, src=src, policy=Policy("beam"))
    n = found["lengths"].max()
    assert found["alignment"].shape == (2, n, 3)
    share = found["alignment"].sum(-1)
    for row, length in zip(share, found["lengths"], strict=True):
        assert np.allclose(row[:length], 1, atol=1e-5) and not row[length:].any()
    assert not found["alignment"][1, :, 1:].any()


@pytest.mark.parametrize("change, message", [
    ({"(prev.tok ->": "(gold ->"}, "the logits depend on the gold token"),
    ({"choose(logits, gold)": "choose(logits, prev.tok)"}, "not what the scan runs over"),
    ({"choose(logits, gold)": "choose(h, gold[:, new])"}, "`choose` takes logits f32[B, tokens]"),
    ({"choose(logits, gold)": "choose(logits)"}, "`choose` takes logits and the gold token"),
    ({"n      = prev.n + tok": "n      = prev.n + choose(logits, gold)"}, "one token in a step"),
    ({"until tok == 2": "until tok"}, "`until` takes a condition for each example"),
    ({"limit 6": "limit 0"}, "a limit is a number of steps, 1 or more"),
    ({"until tok == 2": "until token == 2"}, "`token` is not defined here"),
    ({"  output logits = y.logits": "  z = said -> b: scan Next(5) over T with (text = text)\n"
      "  output logits = y.logits + z.logits"}, "a second scan chooses tokens"),
    ({"  output logits = y.logits": "  output k = choose(y.logits[:, 0], said[:, 0])\n"
      "  output logits = y.logits"}, "`choose` belongs into a cell"),
])
def test_what_cannot_be_decoded(change, message):
    text = SPELLER
    for before, after in change.items():
        assert before in text
        text = text.replace(before, after)
    with pytest.raises(CompileError) as error:
        lamina.loads(text).M().init(0)
    assert message in str(error.value)


@pytest.mark.parametrize("settings, message", [
    ({"kind": "best"}, "a policy is greedy, sample or beam"), ({"temperature": 0}, "above 0"),
    ({"top_k": -1}, "top_k"), ({"top_p": 0}, "top_p"), ({"width": 0}, "at least 1 wide"),
])
def test_policies_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Policy(**settings)


def test_a_model_without_choose_is_not_decoded():
    net = lamina.loads("model M {\n  input x: f32[B, 4]\n  output y = x * 2\n}\n").M()
    assert not net.chooses
    with pytest.raises(ValueError, match="has no scan that uses `choose`"):
        net.decoder()


def test_a_model_without_inputs_writes_from_a_prompt():
    # Nothing but the prompts says how many examples there are.
    text = SPELLER.replace("  memory text: [B, S~, E]\n", "") \
        .replace("    + (mean(text, axis=S) -> more: linear(6)))", "    )") \
        .replace("  input text: f32[B, S~, 4]\n", "").replace(" with (text = text)", "")
    net = lamina.loads(text).M()
    decoder, weights = net.decoder("cpu"), net.init(1)
    assert not decoder.inputs
    found = decoder(weights, prompt=[[3], [4, 4], []], policy=Policy("sample", seed=1))
    assert len(found["tokens"]) == 3 and list(found["tokens"][1, :2]) == [4, 4]
    assert len(decoder(weights)["tokens"]) == 1
    with pytest.raises(KeyError, match="no input is named 'said'; inputs: none"):
        decoder(weights, said=[[3]])
