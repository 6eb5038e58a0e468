"""Every operator's samples, compiled, against the reference.

The reference is NumPy in the same precision. Both round: elementwise float32 functions keep 3 ULP
(3.6e-7 of the value, and composites chain a few), sums of up to 4000 terms err by some
eps * sqrt(4000) = 8e-6 of their largest; so 2e-6 and 2e-5 of a result's largest entry.
"""

import numpy as np
import pytest

from lamina.compiler.ops import OPS
from lamina.compiler.reference import evaluate
from lamina.tests.lower.programs import assert_close, graph_of_cases, run_program
from lamina.tests.ops.samples import cases

# No kernel of their own by design, or not of one operand list alone.
NOT_LOWERED = {"scan": "control flow is not lowered yet", "fused": "made by the fusion pass"}
SAMPLED = [op for op in OPS.values() if op.samples]


@pytest.mark.parametrize("op", SAMPLED, ids=str)
def test_compiled_operator_equals_reference(op, kernel_cache):
    """A wrong template, view or loop shows in the operator that uses it, over awkward sizes."""
    if op.name in NOT_LOWERED:
        pytest.skip(NOT_LOWERED[op.name])
    graph, inputs = graph_of_cases(op, cases(op))
    expected = evaluate(graph, inputs, {})
    results, _ = run_program(graph, inputs, {}, kernel_cache)
    tolerance = 2e-6 if op.kind == "elementwise" else 2e-5
    for name, value in expected.items():
        assert_close(results[name], np.asarray(value), tolerance, f"{op.name} {name}")
