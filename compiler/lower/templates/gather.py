"""Rows looked up by index, and the sum of gradients back into rows."""

from __future__ import annotations

from lamina.compiler.lower.templates.text import NOTHING, POINTERS, Template, kernel_text


def take(dtype: str = "f32", index: str = "i32") -> Template:
    """result[i, :] = table[where[i], :]; an index outside the table reads its nearest row."""
    arguments = ("table", "where", "result", "count", "rows", "width")
    body = f"""
    src = {POINTERS[dtype]}(table)
    at = {POINTERS[index]}(where)
    dst = {POINTERS[dtype]}(result)
    for i in range(tid * count // nthreads, (tid + 1) * count // nthreads):
        row = max(i64(0), min(i64(at[i]), rows - 1))
        for j in range(width):
            dst[i * width + j] = src[row * width + j]
"""
    return Template(kernel_text("Rows of a table.", arguments, NOTHING, body), arguments)


def take_grad(index: str = "i32") -> Template:
    """result[r, :] = sum of gradient[i, :] over the i with where[i] = r, in order of i.

    Each thread owns a range of rows, so that no two write one and the order is always the same.
    """
    arguments = ("gradient", "where", "result", "count", "rows", "width")
    body = f"""
    src = f32ptr(gradient)
    at = {POINTERS[index]}(where)
    dst = f32ptr(result)
    first = tid * rows // nthreads
    last = (tid + 1) * rows // nthreads
    for j in range(first * width, last * width):
        dst[j] = f32(0)
    for i in range(count):
        row = max(i64(0), min(i64(at[i]), rows - 1))
        if row >= first and row < last:
            for j in range(width):
                dst[row * width + j] += src[i * width + j]
"""
    return Template(kernel_text("Gradient of a lookup.", arguments, NOTHING, body), arguments)
