"""Each pass on small graphs, as text: tests/passes/<pass>/<case>.ir holds input, `---`, result.

`pytest tests/transform/test_golden.py --update` writes the results anew; read the difference.
"""

from pathlib import Path

import pytest

from lamina.compiler.ir.text import format_graph, parse_graph
from lamina.compiler.ir.verify import verify
from lamina.compiler.ops import OPS
from lamina.compiler.transform.pipeline import PASSES
from lamina.compiler.transform.recompute import recompute

FOLDER = Path(__file__).parents[1] / "passes"
CASES = sorted(FOLDER.glob("*/*.ir"))
RUN = {**{one.name: one.run for one in PASSES}, "recompute": lambda graph: recompute(graph, 2)}


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_pass_gives_this_text(path, request):
    """A pass that does more or less than it did is seen, and must be meant."""
    given, _, expected = path.read_text().partition("---\n")
    graph = verify(parse_graph(given, OPS), "reading")
    result = verify(RUN[path.parent.name](graph), path.parent.name)
    text = format_graph(result)
    if request.config.getoption("--update"):
        path.write_text(f"{format_graph(graph)}---\n{text}")
        return
    assert text == expected
    assert RUN[path.parent.name](result) is result or path.parent.name == "fuse"


def test_every_pass_has_a_case():
    """The second simplification is the first again; recomputation comes before all passes."""
    assert {path.parent.name for path in CASES} == set(RUN) - {"simplify-again"}
