"""PyTorch modules of what is no model of the zoo; their parameters are named in models.py."""

from __future__ import annotations

import torch
from torch import nn

from lamina.tests.bench.models import steps_of


class Cell(nn.Module):
    """An LSTM as its equations, in a loop; 1 is added to the forget gate."""

    def __init__(self, width: int):
        super().__init__()
        self.both = nn.Linear(2 * width, 4 * width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[B, T, width] to the same, as the layers of PyTorch do."""
        h = c = x.new_zeros(x.shape[0], x.shape[2])
        found = []
        for step in range(x.shape[1]):
            i, f, g, o = self.both(torch.cat([x[:, step], h], -1)).chunk(4, -1)
            c = (f + 1).sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            found.append(h)
        return torch.stack(found, 1), None


class Language(nn.Module):
    """Embedding, recurrent layers and scores for every word at every step."""

    def __init__(self, kind: str, words: int, width: int, layers: int):
        super().__init__()
        self.table, self.head = nn.Embedding(words, width), nn.Linear(width, words)
        self.own = kind == "cell"
        self.body = nn.ModuleList(Cell(width) for _ in range(layers)) if self.own else \
            getattr(nn, kind.upper())(width, width, layers, batch_first=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [B, T] to scores [B, T, words]."""
        x = self.table(ids)
        for layer in self.body if self.own else [self.body]:
            x, _ = layer(x)
        return self.head(x)


def sample(y: torch.Tensor) -> torch.Tensor:
    """Some entries of a result: a view."""
    return y[tuple(slice(None, None, step) for step in steps_of(tuple(y.shape)))]


class Product(nn.Module):
    """A matrix product of its own operands."""

    def __init__(self, operands: dict[str, tuple[int, ...]]):
        super().__init__()
        for name, shape in operands.items():
            self.register_buffer(name, torch.empty(shape))

    def forward(self) -> torch.Tensor:
        """A sample of the product."""
        return sample(self.a @ self.b)


class Convolution(nn.Module):
    """A 3x3 convolution of its own operands."""

    def __init__(self, operands: dict[str, tuple[int, ...]]):
        super().__init__()
        batch, height, width, channels = operands["x"]
        self.register_buffer("x", torch.empty(batch, channels, height, width))
        self.register_buffer("w", torch.empty(operands["w"]))

    def forward(self) -> torch.Tensor:
        """A sample of the result, its channels last."""
        return sample(nn.functional.conv2d(self.x, self.w, padding=1).permute(0, 2, 3, 1))
