"""The zoo's models as PyTorch modules; their parameters have the same paths as ours."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


def named(**layers):
    """Layers one after the other, each with a name; None is left out."""
    return nn.Sequential(OrderedDict((k, v) for k, v in layers.items() if v is not None))


# --- LeNet-5 ------------------------------------------------------------------------------------


def lenet5(classes=10):
    return named(
        c1=nn.Conv2d(1, 6, 5), t1=nn.Tanh(), s2=nn.AvgPool2d(2),
        c3=nn.Conv2d(6, 16, 5), t3=nn.Tanh(), s4=nn.AvgPool2d(2), flat=nn.Flatten(),
        c5=nn.Linear(400, 120), t5=nn.Tanh(), f6=nn.Linear(120, 84), t6=nn.Tanh(),
        head=nn.Linear(84, classes))


# The maps of the second layer that each map of the third sees: Table I, written out.
TABLE_1 = {
    "three": [(0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (4, 5, 0), (5, 0, 1)],
    "four": [(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 0), (4, 5, 0, 1), (5, 0, 1, 2)],
    "apart": [(0, 1, 3, 4), (1, 2, 4, 5), (2, 3, 5, 0)],
    "all": [(0, 1, 2, 3, 4, 5)],
}


class Table1(nn.Module):
    """One convolution a map, of the maps it sees."""

    def __init__(self):
        super().__init__()
        for name, rows in TABLE_1.items():
            self.add_module(name, nn.Conv2d(len(rows[0]), len(rows), 5))

    def forward(self, x):
        maps = []
        for name, rows in TABLE_1.items():
            layer = getattr(self, name)
            maps += [F.conv2d(x[:, list(row)], layer.weight[i:i + 1], layer.bias[i:i + 1])
                     for i, row in enumerate(rows)]
        return torch.cat(maps, 1)


class Subsample(nn.Module):
    """The sum of four neighbours, times a coefficient, plus a bias."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.zeros(channels)) for _ in range(2))

    def forward(self, x):
        four = x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]
        return four * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class Rbf(nn.Module):
    """Minus the squared distance to ten fixed pictures."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(12, 10, 7))

    def forward(self, x):
        pictures = torch.stack([self.centre[:, digit].flatten() for digit in range(10)])
        return -((x[:, None] - pictures) ** 2).sum(2)


class Squash(nn.Module):
    """The scaled hyperbolic tangent."""

    def forward(self, x):
        return 1.7159 * torch.tanh(x * 2 / 3)


def lenet5_1998():
    return named(
        c1=nn.Conv2d(1, 6, 5), a1=Squash(), s2=Subsample(6), a2=Squash(),
        c3=Table1(), a3=Squash(), s4=Subsample(16), a4=Squash(),
        c5=nn.Conv2d(16, 120, 5), a5=Squash(), flat=nn.Flatten(),
        f6=nn.Linear(120, 84), a6=Squash(), head=Rbf())


# --- AlexNet and VGG ----------------------------------------------------------------------------


def classifier(inputs, hidden, classes, p):
    return named(
        d6=nn.Dropout(p), fc6=nn.Linear(inputs, hidden), r6=nn.ReLU(),
        d7=nn.Dropout(p), fc7=nn.Linear(hidden, hidden), r7=nn.ReLU(),
        head=nn.Linear(hidden, classes))


def alexnet(classes=1000, hidden=4096, p=0.5):
    return named(
        c1=nn.Conv2d(3, 64, 11, 4, 2), r1=nn.ReLU(), p1=nn.MaxPool2d(3, 2),
        c2=nn.Conv2d(64, 192, 5, 1, 2), r2=nn.ReLU(), p2=nn.MaxPool2d(3, 2),
        c3=nn.Conv2d(192, 384, 3, 1, 1), r3=nn.ReLU(), c4=nn.Conv2d(384, 256, 3, 1, 1),
        r4=nn.ReLU(), c5=nn.Conv2d(256, 256, 3, 1, 1), r5=nn.ReLU(), p5=nn.MaxPool2d(3, 2),
        flat=nn.Flatten(), classifier=classifier(256 * 36, hidden, classes, p))


class ResponseNorm(nn.Module):
    """x / (2 + 1e-4 * sum of the squares of five channels) ** 0.75, as published in 2012.

    PyTorch's own takes the mean of the squares, so its alpha is five times as large.
    """

    def forward(self, x):
        return F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2)


def alexnet2012(classes=1000, hidden=4096, p=0.5):
    return named(
        c1=nn.Conv2d(3, 96, 11, 4), r1=nn.ReLU(), n1=ResponseNorm(), p1=nn.MaxPool2d(3, 2),
        c2=nn.Conv2d(96, 256, 5, 1, 2, groups=2), r2=nn.ReLU(), n2=ResponseNorm(),
        p2=nn.MaxPool2d(3, 2), c3=nn.Conv2d(256, 384, 3, 1, 1), r3=nn.ReLU(),
        c4=nn.Conv2d(384, 384, 3, 1, 1, groups=2), r4=nn.ReLU(),
        c5=nn.Conv2d(384, 256, 3, 1, 1, groups=2), r5=nn.ReLU(), p5=nn.MaxPool2d(3, 2),
        flat=nn.Flatten(), classifier=classifier(256 * 36, hidden, classes, p))


def vgg(depths=(2, 2, 3, 3, 3), norm=False, classes=1000, size=224, width=64, hidden=4096, p=0.5):
    stages, channels = [], 3
    for depth, factor in zip(depths, (1, 2, 4, 8, 8), strict=True):
        convs = []
        for _ in range(depth):
            convs.append(named(conv=nn.Conv2d(channels, factor * width, 3, 1, 1),
                               bn=nn.BatchNorm2d(factor * width) if norm else None, r=nn.ReLU()))
            channels = factor * width
        stages.append(named(convs=nn.Sequential(*convs), pool=nn.MaxPool2d(2)))
    inputs = channels * (size // 32) ** 2
    return named(stages=nn.Sequential(*stages), flat=nn.Flatten(),
                 classifier=classifier(inputs, hidden, classes, p))


# --- residual networks --------------------------------------------------------------------------


def conv_bn(channels, out, kernel=3, stride=1, groups=1):
    return named(
        conv=nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        bn=nn.BatchNorm2d(out))


class Residual(nn.Module):
    """relu(layers + shortcut), with ReLU between the layers c1, c2 ..."""

    def __init__(self, *layers, shortcut=None):
        super().__init__()
        self.count, self.proj = len(layers), shortcut
        for i, layer in enumerate(layers):
            self.add_module(f"c{i + 1}", layer)

    def forward(self, x):
        y = self.c1(x)
        for i in range(1, self.count):
            y = getattr(self, f"c{i + 1}")(y.relu())
        return (y + (x if self.proj is None else self.proj(x))).relu()


def basic(channels, width, stride, v1):
    changes = stride != 1 or channels != width
    return Residual(conv_bn(channels, width, 3, stride), conv_bn(width, width),
                    shortcut=conv_bn(channels, width, 1, stride) if changes else None), width


def bottleneck(channels, width, stride, v1):
    out = 4 * width
    first, second = (stride, 1) if v1 else (1, stride)
    changes = stride != 1 or channels != out
    return Residual(conv_bn(channels, width, 1, first), conv_bn(width, width, 3, second),
                    conv_bn(width, out, 1),
                    shortcut=conv_bn(channels, out, 1, stride) if changes else None), out


class EverySecond(nn.Module):
    """Option A: every second pixel, new channels of zeros."""

    def forward(self, x):
        new = x.shape[1] // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, new, new))


def small(channels, width, stride, v1):
    # The widths double wherever the size halves.
    return Residual(conv_bn(channels, width, 3, stride), conv_bn(width, width),
                    shortcut=EverySecond() if stride == 2 else None), width


def residual_stages(body, channels, plan, v1=False):
    """Stages of a first block, which may stride, and the rest."""
    stages = []
    for width, depth, stride in plan:
        first, channels = body(channels, width, stride, v1)
        rest = [body(channels, width, 1, v1)[0] for _ in range(depth - 1)]
        stages.append(named(first=first, rest=nn.Sequential(*rest)))
    return nn.Sequential(*stages), channels


def resnet(body=bottleneck, depths=(3, 4, 6, 3), v1=False, classes=1000):
    plan = [(64 * 2**i, depth, 2 if i else 1) for i, depth in enumerate(depths)]
    stages, out = residual_stages(body, 64, plan, v1)
    return named(stem=conv_bn(3, 64, 7, 2), r=nn.ReLU(), p=nn.MaxPool2d(3, 2, 1), stages=stages,
                 pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(out, classes))


def small_resnet(n=3, channels=3, classes=10):
    plan = [(16, n, 1), (32, n, 2), (64, n, 2)]
    stages, out = residual_stages(small, 16, plan)
    return named(stem=conv_bn(channels, 16), r=nn.ReLU(), stages=stages,
                 pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(out, classes))


# --- the detector -------------------------------------------------------------------------------


class Detector(nn.Module):
    """Scores of classes at each position; what else it finds is kept in `sides` and `central`."""

    def __init__(self, classes=10, width=32, depth=2):
        super().__init__()
        self.stem = conv_bn(3, width // 2, 3, 2)
        self.first = basic(width // 2, width, 2, False)[0]
        self.second = basic(width, 2 * width, 2, False)[0]
        self.third = basic(2 * width, 2 * width, 1, False)[0]
        for tower in ("class_tower", "box_tower"):
            layers = nn.Sequential(*(named(norm=conv_bn(2 * width, 2 * width))
                                     for _ in range(depth)))
            self.add_module(tower, named(layers=layers))
        for head, out in (("class_head", classes), ("side_head", 4), ("center_head", 1)):
            self.add_module(head, nn.Conv2d(2 * width, out, 3, padding=1))

    def forward(self, x):
        def through(tower, x):
            for layer in tower.layers:
                x = F.relu(layer(x))
            return x

        def listed(x):
            return x.flatten(2).movedim(1, 2)

        x = self.third(self.second(self.first(F.relu(self.stem(x)))))
        named, around = through(self.class_tower, x), through(self.box_tower, x)
        self.sides = F.softplus(listed(self.side_head(around))) * 8
        self.central = listed(self.center_head(around))[..., 0]
        return listed(self.class_head(named)) - 4.6


# --- MobileNet ----------------------------------------------------------------------------------

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1),
          (512, 1), (512, 1), (1024, 2), (1024, 1))
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
          (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet(width=1.0, classes=1000):
    channels, blocks = int(32 * width), []
    for out, stride in BLOCKS:
        blocks.append(named(
            depthwise=conv_bn(channels, channels, 3, stride, channels), r1=nn.ReLU(),
            pointwise=conv_bn(channels, int(out * width), 1), r2=nn.ReLU()))
        channels = int(out * width)
    return named(stem=conv_bn(3, int(32 * width), 3, 2), r=nn.ReLU(), blocks=nn.Sequential(*blocks),
                 pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(channels, classes))


def rounded(channels):
    """The nearest multiple of 8 that takes no more than a tenth away."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near if near >= 0.9 * channels else near + 8


class Inverted(nn.Module):
    """Expand, depthwise, project; the input is added where the shape stays."""

    def __init__(self, channels, out, stride, expand):
        super().__init__()
        wide = channels * expand
        layers = {"expand": conv_bn(channels, wide, 1) if expand > 1 else None,
                  "r1": nn.ReLU6() if expand > 1 else None,
                  "depthwise": conv_bn(wide, wide, 3, stride, wide), "r2": nn.ReLU6(),
                  "project": conv_bn(wide, out, 1)}
        for name, layer in layers.items():
            if layer is not None:
                self.add_module(name, layer)
        self.joins = stride == 1 and channels == out

    def forward(self, x):
        y = x
        for layer in self.children():
            y = layer(y)
        return x + y if self.joins else y


def mobilenet_v2(width=1.0, classes=1000, p=0.2):
    channels, stages = rounded(32 * width), []
    stem, last = named(conv=conv_bn(3, channels, 3, 2)), int(1280 * max(1, width))
    for expand, out, depth, stride in STAGES:
        first = Inverted(channels, channels := rounded(out * width), stride, expand)
        rest = [Inverted(channels, channels, 1, expand) for _ in range(depth - 1)]
        stages.append(named(first=first, rest=nn.Sequential(*rest)))
    return named(stem=stem, r=nn.ReLU6(), stages=nn.Sequential(*stages),
                 last=conv_bn(channels, last, 1), r2=nn.ReLU6(), pool=nn.AdaptiveAvgPool2d(1),
                 flat=nn.Flatten(), d=nn.Dropout(p), head=nn.Linear(last, classes))


# --- U-Net --------------------------------------------------------------------------------------


def double(channels, width, padding, norm):
    return named(
        c1=nn.Conv2d(channels, width, 3, 1, padding, bias=not norm),
        bn1=nn.BatchNorm2d(width) if norm else None, r1=nn.ReLU(),
        c2=nn.Conv2d(width, width, 3, 1, padding, bias=not norm),
        bn2=nn.BatchNorm2d(width) if norm else None, r2=nn.ReLU())


class Up(nn.Module):
    """Twice the size, beside the middle of what the way down had."""

    def __init__(self, width, padding, norm):
        super().__init__()
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        # Every module has a method of this name, which hides a layer of it.
        self._modules["double"] = double(2 * width, width, padding, norm)

    def forward(self, x, skip):
        x = self.up(x)
        top, left = ((skip.shape[axis] - x.shape[axis]) // 2 for axis in (2, 3))
        middle = skip[:, :, top:top + x.shape[2], left:left + x.shape[3]]
        return self._modules["double"](torch.cat([middle, x], 1))


class UNet(nn.Module):
    def __init__(self, width=64, channels=1, classes=2, size=572, padding=0, norm=False):
        super().__init__()
        widths = [width * 2**i for i in range(5)]
        names = ["down1", "down2", "down3", "down4", "bottom"]
        for name, inputs, out in zip(names, [channels, *widths], widths, strict=False):
            self.add_module(name, double(inputs, out, padding, norm))
        for i in range(4):
            self.add_module(f"up{i + 1}", Up(widths[i], padding, norm))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        skips = []
        for i in range(1, 5):
            skips.append(getattr(self, f"down{i}")(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottom(x)
        for i in range(4, 0, -1):
            x = getattr(self, f"up{i}")(x, skips[i - 1])
        return self.head(x)


# --- sequences ----------------------------------------------------------------------------------

STEPS = {nn.RNNCell: torch.rnn_tanh_cell, nn.LSTMCell: torch.lstm_cell, nn.GRUCell: torch.gru_cell}


def read(cell, x, lengths=None, back=False, forget=0.0):
    """The states [B, T, H] of a cell run over x, 0 past each example's end, and the last one.

    A state stays as it is past the end; the way back begins there. `forget` is added to that gate.
    """
    lengths = torch.full((len(x),), x.shape[1]) if lengths is None else lengths
    gates = x.new_zeros(cell.bias_ih.shape)
    if forget:
        gates[cell.hidden_size:2 * cell.hidden_size] = forget
    h = x.new_zeros(len(x), cell.hidden_size)
    state, outs = (h, h) if isinstance(cell, nn.LSTMCell) else (h,), {}
    for t in reversed(range(x.shape[1])) if back else range(x.shape[1]):
        given = state if len(state) > 1 else h
        new = STEPS[type(cell)](x[:, t], given, cell.weight_ih, cell.weight_hh,
                                cell.bias_ih + gates, cell.bias_hh)
        live = (t < lengths)[:, None]
        new = new if isinstance(new, tuple) else (new,)
        state = tuple(torch.where(live, a, b) for a, b in zip(new, state, strict=True))
        h, outs[t] = state[0], state[0] * live
    return torch.stack([outs[t] for t in range(x.shape[1])], 1), h


class Recurrent(nn.Module):
    """A recurrent layer, one way or both ways; its paths are also names of methods."""

    def __init__(self, make, forget=0.0, both=False):
        super().__init__()
        self.forget = forget
        self._modules.update({way: make() for way in ("forward", "backward")[:1 + both]})

    def forward(self, x, lengths=None):
        ways = [read(cell, x, lengths, way == "backward", self.forget)[0]
                for way, cell in self._modules.items()]
        return torch.cat(ways, -1)


class Layer(nn.Module):
    """The library's layer of one such layer: `layers.0`."""

    def __init__(self, make, **settings):
        super().__init__()
        self.layers = nn.ModuleList([Recurrent(make, **settings)])

    def forward(self, x, lengths=None):
        return self.layers[0](x, lengths)


class CopyTask(nn.Module):
    """Embedding, one recurrent layer, and a score for every symbol at the last steps."""

    def __init__(self, cell, forget=0.0, symbols=8, length=5):
        super().__init__()
        self.length = length
        self.emb = nn.Embedding(symbols + 2, 16)
        self.net = Layer(partial(cell, 16, 64), forget=forget)
        self.head = nn.Linear(64, symbols)

    def forward(self, ids):
        return self.head(self.net(self.emb(ids))[:, -self.length:])


class Tagger(nn.Module):
    """Words and their endings, read both ways."""

    def __init__(self, words=20000, endings=4000, tags=12, size=96, hidden=96):
        super().__init__()
        self.words, self.endings = nn.Embedding(words, size), nn.Embedding(endings, size // 2)
        self.read = Layer(partial(nn.LSTMCell, size + size // 2, hidden), both=True)
        self.head = nn.Linear(2 * hidden, tags)

    def forward(self, word, ending, lengths):
        x = torch.cat([self.words(word), self.endings(ending)], -1)
        return self.head(self.read(x, lengths["S~"]))


class Forecaster(nn.Module):
    """The mean of the weeks before, and how much the coming hours differ from it."""

    def __init__(self, weeks=4, period=168, recent=72, horizon=24, channels=1, hidden=64,
                 scale=1000.0):
        super().__init__()
        self.weeks, self.period, self.recent, self.scale = weeks, period, recent, scale
        self.read = Layer(partial(nn.LSTMCell, 2 * channels, hidden))
        self.head = nn.Linear(hidden, horizon * channels)

    def forward(self, past):
        usual = sum(past.chunk(self.weeks, 1)) / self.weeks
        level = (usual - usual.mean(1, keepdim=True)) / self.scale
        unusual = 5 * (past[:, -self.period:] - usual) / self.scale
        seen = self.read(torch.cat([level, unusual], -1)[:, -self.recent:])[:, -1]
        change = self.head(seen).unflatten(1, (-1, past.shape[2]))
        return usual[:, :change.shape[1]] + self.scale / 5 * change


class RowReader(nn.Module):
    """A picture as 28 steps of 28 pixels."""

    def __init__(self, classes=10, hidden=96):
        super().__init__()
        self.read = Layer(partial(nn.LSTMCell, 28, hidden), forget=1.0)
        self.head = nn.Linear(hidden, classes)

    def forward(self, image):
        return self.head(self.read(image[:, 0])[:, -1])


class ClipReader(nn.Module):
    """What is seen in each picture, read in order."""

    def __init__(self, classes=8, size=64, hidden=64):
        super().__init__()
        self.look = named(
            c1=nn.Conv2d(1, 16, 5, 2, 2), r1=nn.ReLU(), c2=nn.Conv2d(16, 32, 3, 2, 1), r2=nn.ReLU(),
            c3=nn.Conv2d(32, 32, 3, 2, 1), r3=nn.ReLU(), flat=nn.Flatten(),
            out=nn.Linear(32 * 25, size), r4=nn.ReLU())
        self.read = Layer(partial(nn.LSTMCell, size, hidden))
        self.head = nn.Linear(hidden, classes)

    def forward(self, clip):
        seen = self.look(clip.flatten(0, 1)).unflatten(0, clip.shape[:2])
        return self.head(self.read(seen)[:, -1])


# --- sequences that are written -----------------------------------------------------------------


def before(gold):
    """The token before each: <bos>, then the gold ones."""
    return F.pad(gold[:, :-1], (1, 0), value=1)


class Writer(nn.Module):
    """Two LSTMs over the tokens so far."""

    def __init__(self, tokens, size, hidden):
        super().__init__()
        self.emb = nn.Embedding(tokens, size)
        self.low, self.high = nn.LSTMCell(size, hidden), nn.LSTMCell(hidden, hidden)
        self.out = nn.Linear(hidden, tokens)

    def forward(self, gold):
        return self.out(read(self.high, read(self.low, self.emb(before(gold)))[0])[0])


class Language(nn.Module):
    """A model that is nothing but its writer: what comes after a step does not reach it."""

    def __init__(self, tokens, size, hidden=256):
        super().__init__()
        self.writer = Writer(tokens, size, hidden)

    def forward(self, text, lengths=None):
        return self.writer(text)


class Encoder(nn.Module):
    """What each position means, and a decoder's first state."""

    def __init__(self, vocab, hidden):
        super().__init__()
        self.emb = nn.Embedding(vocab, hidden)
        self._modules.update({way: nn.LSTMCell(hidden, hidden) for way in ("forward", "backward")})
        self.bridge = nn.Linear(2 * hidden, hidden)

    def forward(self, src, lengths):
        x = self.emb(src)
        ways = [read(cell, x, lengths, way == "backward") for way, cell in self._modules.items()
                if way in ("forward", "backward")]
        text, last = (torch.cat(both, -1) for both in zip(*ways, strict=True))
        return text, self.bridge(last).tanh()


class Decoder(nn.Module):
    """A loop over the steps, each told the right token before it; `step` is a kind's own."""

    def __init__(self, vocab, hidden, inputs):
        super().__init__()
        self.emb = nn.Embedding(vocab, hidden)
        self.lstm = nn.LSTMCell(inputs, hidden)

    def forward(self, gold, memory, live, h, c):
        words, logits = self.emb(before(gold)), []
        state, seen = (h, c), memory.new_zeros(len(gold), memory.shape[2])
        for t in range(gold.shape[1]):
            state, seen, scores = self.step(words[:, t], state, seen, memory, live)
            logits.append(scores)
        return torch.stack(logits, 1)


def weighted(scores, live, memory):
    """The mean of the memory [B, S, E] by the softmax of scores [B, S] where it is live."""
    share = scores.masked_fill(~live, -torch.inf).softmax(1)
    return (share[:, :, None] * memory).sum(1)


class ContextDecoder(Decoder):
    """All it knows of the source is its first state."""

    def __init__(self, vocab, hidden):
        super().__init__(vocab, hidden, hidden)
        self.out = nn.Linear(hidden, vocab)

    def step(self, word, state, seen, memory, live):
        state = self.lstm(word, state)
        return state, seen, self.out(state[0])


class AdditiveDecoder(Decoder):
    """Scores by a small network of the state; what was seen goes into the next step."""

    def __init__(self, vocab, hidden, att):
        super().__init__(vocab, hidden, 3 * hidden)
        self.key = nn.Linear(2 * hidden, att, bias=False)
        self.query, self.score = nn.Linear(hidden, att), nn.Linear(att, 1, bias=False)
        self.mix, self.out = nn.Linear(3 * hidden, hidden), nn.Linear(hidden, vocab)

    def step(self, word, state, seen, memory, live):
        state = self.lstm(torch.cat([word, seen], 1), state)
        scores = self.score(torch.tanh(self.key(memory) + self.query(state[0])[:, None]))[..., 0]
        seen = weighted(scores, live, memory)
        return state, seen, self.out(self.mix(torch.cat([state[0], seen], 1)).tanh())


class MultiplicativeDecoder(Decoder):
    """Scores are products of the state with every position."""

    def __init__(self, vocab, hidden):
        super().__init__(vocab, hidden, hidden)
        self.key = nn.Linear(2 * hidden, hidden, bias=False)
        self.mix, self.out = nn.Linear(3 * hidden, hidden, bias=False), nn.Linear(hidden, vocab)

    def step(self, word, state, seen, memory, live):
        state = self.lstm(word, state)
        seen = weighted((self.key(memory) @ state[0][:, :, None])[..., 0], live, memory)
        return state, seen, self.out(self.mix(torch.cat([state[0], seen], 1)).tanh())


class Translator(nn.Module):
    """An encoder and one of the three decoders."""

    def __init__(self, decoder, src_vocab=64, tgt_vocab=64, hidden=256, **settings):
        super().__init__()
        self.encoder = Encoder(src_vocab, hidden)
        self.decoder = decoder(tgt_vocab, hidden, **settings)

    def forward(self, src, tgt, lengths):
        text, h = self.encoder(src, lengths["S~"])
        live = torch.arange(src.shape[1]) < lengths["S~"][:, None]
        return self.decoder(tgt, text, live, h, torch.zeros_like(h))


class Teller(Decoder):
    """Looks at the picture by the state before the step, then reads the word and what it saw."""

    def __init__(self, words, hidden, att, places):
        super().__init__(words, hidden, hidden + places)
        self.key = nn.Linear(places, att, bias=False)
        self.query, self.score = nn.Linear(hidden, att), nn.Linear(att, 1, bias=False)
        self.out = nn.Linear(hidden + places, words)

    def step(self, word, state, seen, memory, live):
        scores = self.score(torch.tanh(self.key(memory) + self.query(state[0])[:, None]))[..., 0]
        seen = weighted(scores, live, memory)
        state = self.lstm(torch.cat([word, seen], 1), state)
        return state, seen, self.out(torch.cat([state[0], seen], 1))


class Captioner(nn.Module):
    """A grid of places, and the words for it."""

    def __init__(self, words=2000, width=24, hidden=192, att=96):
        super().__init__()
        c = 4 * width
        self.look = named(
            c1=nn.Conv2d(3, width, 3, 2, 1), r1=nn.ReLU(),
            c2=nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), b2=nn.BatchNorm2d(2 * width),
            r2=nn.ReLU(),
            c3=nn.Conv2d(2 * width, c, 3, 2, 1, bias=False), b3=nn.BatchNorm2d(c), r3=nn.ReLU(),
            c4=nn.Conv2d(c, c, 3, 1, 1, bias=False), b4=nn.BatchNorm2d(c), r4=nn.ReLU())
        self.first_h, self.first_c = nn.Linear(c, hidden), nn.Linear(c, hidden)
        self.teller = Teller(words, hidden, att, c)

    def forward(self, image, caption, lengths):
        places = self.look(image).flatten(2).movedim(1, 2)
        mean, live = places.mean(1), torch.ones(places.shape[:2], dtype=torch.bool)
        return self.teller(caption, places, live, self.first_h(mean).tanh(),
                           self.first_c(mean).tanh())


# --- all of them --------------------------------------------------------------------------------

_VGG = {"11": (1, 1, 2, 2, 2), "13": (2, 2, 2, 2, 2), "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}
_RESNET = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}

TWINS = {
    "captions.Captioner": Captioner,
    "clips.ClipReader": ClipReader,
    "copy_task.CopyTask": partial(CopyTask, nn.LSTMCell, 2.0),
    "copy_task.CopyRNN": partial(CopyTask, nn.RNNCell),
    "copy_task.CopyGRU": partial(CopyTask, nn.GRUCell),
    "forecast.Forecaster": Forecaster,
    "language.CharacterModel": partial(Language, tokens=128, size=64),
    "language.WordModel": partial(Language, tokens=10000, size=256),
    "rows.RowReader": RowReader,
    "seq2seq.Context": partial(Translator, ContextDecoder),
    "seq2seq.Additive": partial(Translator, AdditiveDecoder, att=128),
    "seq2seq.Multiplicative": partial(Translator, MultiplicativeDecoder),
    "tagger.Tagger": Tagger,
    "lenet5.LeNet5": lenet5,
    "lenet5_1998.LeNet5of1998": lenet5_1998,
    "alexnet.AlexNet": alexnet,
    "alexnet.AlexNet2012": alexnet2012,
    "detector.Detector": Detector,
    "vgg.VGG": vgg,
    **{f"vgg.VGG{n}": partial(vgg, depths=depths) for n, depths in _VGG.items()},
    **{f"vgg.VGG{n}BN": partial(vgg, depths=depths, norm=True) for n, depths in _VGG.items()},
    "resnet.ResNet": resnet,
    "resnet.ResNet18": partial(resnet, body=basic, depths=(2, 2, 2, 2)),
    "resnet.ResNet34": partial(resnet, body=basic, depths=(3, 4, 6, 3)),
    **{f"resnet.ResNet{n}": partial(resnet, depths=depths) for n, depths in _RESNET.items()},
    **{f"resnet.ResNet{n}v1": partial(resnet, depths=depths, v1=True)
       for n, depths in _RESNET.items()},
    "cifar_resnet.SmallResNet": small_resnet,
    "cifar_resnet.ResNet20": partial(small_resnet, n=3),
    "cifar_resnet.ResNet56": partial(small_resnet, n=9),
    "cifar_resnet.ResNet110": partial(small_resnet, n=18),
    "unet.UNet": UNet,
    "unet.UNetBN": partial(UNet, norm=True),
    "unet.UNetSame": partial(UNet, size=256, padding=1, norm=True),
    "mobilenet.MobileNet": mobilenet,
    "mobilenet.MobileNetV2": mobilenet_v2,
}
