"""The layer table lists blocks that have parameters or products of their own."""

import lamina

TEXT = """
block Dense(out: int) {
  input x: [B, D]
  param weight: [D, out] = glorot()
  output y: [B, out] = x @ weight -> relu
}
block Scaled(out: int) {
  input x: [B, D]
  param scale: [out] = 1
  output y: [B, out] = (x -> inner: linear(out)) * scale
}
block Plain {
  input x: [B, D]
  output y = x -> tanh
}
model M {
  input x: f32[B, 4]
  output y = x -> a: Dense(3) -> b: Scaled(2) -> c: Plain
}
"""


def test_rows_add_up():
    # A user's block is a layer too: before, its own parameters were in the total alone.
    summary = lamina.loads(TEXT).M().summary()
    found = [(row.path, row.op, row.parameters, row.macs) for row in summary.layers]
    assert found == [
        ("a.relu", "relu", 0, 0), ("a", "Dense", 12, 12),
        ("b.inner", "linear", 8, 6), ("b", "Scaled", 2, 0), ("c.tanh", "tanh", 0, 0)]
    assert summary.parameters == 22 and summary.macs == 18
