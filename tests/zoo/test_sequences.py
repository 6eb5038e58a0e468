"""Figures of the recurrent models by hand: what a step multiplies, times the number of steps."""

import pytest

from lamina.commands.selection import select_net


def linear(inputs, out, bias=True):
    """Parameters and multiply-accumulates of one position."""
    return inputs * out + bias * out, inputs * out


def lstm(inputs, hidden):
    """The same of a step; PyTorch's two biases are counted."""
    weights = 4 * hidden * (inputs + hidden)
    return weights + 8 * hidden, weights


def table(entries, size):
    """A look-up multiplies nothing."""
    return entries * size, 0


def total(*layers):
    """Layers with the number of their positions, added up."""
    return tuple(sum(figures) for figures in zip(
        *((parameters, macs * count) for count, (parameters, macs) in layers), strict=True))


def seq2seq(kind, hidden=256, vocab=64, att=128, source=9, target=7):
    ways = [(1, table(vocab, hidden)), (source, lstm(hidden, hidden)),
            (source, lstm(hidden, hidden)), (1, linear(2 * hidden, hidden)),
            (1, table(vocab, hidden)), (target, linear(hidden, vocab))]
    if kind == "Context":
        return total(*ways, (target, lstm(hidden, hidden)))
    if kind == "Multiplicative":
        return total(*ways, (target, lstm(hidden, hidden)),
                     (source, linear(2 * hidden, hidden, bias=False)),
                     (target, linear(3 * hidden, hidden, bias=False)))
    return total(*ways, (target, lstm(3 * hidden, hidden)),
                 (source, linear(2 * hidden, att, bias=False)), (target, linear(hidden, att)),
                 (source * target, linear(att, 1, bias=False)),
                 (target, linear(3 * hidden, hidden)))


def language(tokens, size, steps, hidden=256):
    return total((1, table(tokens, size)), (steps, lstm(size, hidden)),
                 (steps, lstm(hidden, hidden)), (steps, linear(hidden, tokens)))


def captioner(side=64, words=6, table_size=2000, width=24, hidden=192, att=96):
    places = (side // 8) ** 2

    def conv(inputs, out, positions, norm=True):
        weights = 9 * inputs * out
        return weights + (2 * out if norm else out), weights * positions

    look = [conv(3, width, 16 * places, norm=False), conv(width, 2 * width, 4 * places),
            conv(2 * width, 4 * width, places), conv(4 * width, 4 * width, places)]
    seen = 4 * width
    return total(*((1, layer) for layer in look), (1, linear(seen, hidden)),
                 (1, linear(seen, hidden)), (1, table(table_size, hidden)),
                 (places, linear(seen, att, bias=False)), (words, linear(hidden, att)),
                 (places * words, linear(att, 1, bias=False)),
                 (words, lstm(hidden + seen, hidden)), (words, linear(hidden + seen, table_size)))


def clip_reader(frames=10):
    convs = [linear(25, 16), linear(9 * 16, 32), linear(9 * 32, 32)]  # one position of a map each
    return total(*((frames * side**2, conv) for side, conv in zip((20, 10, 5), convs, strict=True)),
                 (frames, linear(32 * 25, 64)), (frames, lstm(64, 64)), (1, linear(64, 8)))


def tagger(steps=20):
    return total((1, table(20000, 96)), (1, table(4000, 48)), (steps, lstm(144, 96)),
                 (steps, lstm(144, 96)), (steps, linear(192, 12)))


@pytest.mark.parametrize(("file", "model", "sizes", "figures"), [
    *(("seq2seq", kind, {"src": "1x9", "tgt": "1x7"}, seq2seq(kind))
      for kind in ("Context", "Additive", "Multiplicative")),
    ("language", "CharacterModel", {"text": "1x96"}, language(128, 64, 96)),
    ("language", "WordModel", {"text": "1x20"}, language(10000, 256, 20)),
    ("clips", "ClipReader", {"clip": "1x10x1x40x40"}, clip_reader()),
    ("tagger", "Tagger", {"word": "1x20", "ending": "1x20"}, tagger()),
    ("captions", "Captioner", {"image": "1x3x64x64", "caption": "1x6"}, captioner()),
    ("forecast", "Forecaster", {"past": "1x672x1"}, total((72, lstm(2, 64)), (1, linear(64, 24)))),
    ("rows", "RowReader", {"image": "1x1x28x28"}, total((28, lstm(28, 96)), (1, linear(96, 10)))),
], ids=lambda value: value if isinstance(value, str) else "")
def test_figures_by_formula(file, model, sizes, figures):
    # The tool counts what the graph holds, in and outside of scans; here layers are added up.
    summary = select_net(file, model, {}, sizes).summary()
    assert (summary.parameters, summary.macs) == figures
