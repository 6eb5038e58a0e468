"""Results that come as one run of numbers, whatever their channels, are finished many at a time.

Results of few channels fill a vector only where neighbouring pixels lie in it together. A kernel
appends them to what waits at `staged`, in the order in which they lie in memory; what is there is
finished in whole vectors by a kernel of the epilogue, which is called by address.

Texts here use `staged` (an address), `have` (how many floats wait there), `start` (where in the
result the first of them belongs, in floats) and `told` (what the finishing kernel is told).
"""

from __future__ import annotations

from lamina.compiler.lower.templates.text import (
    LINE,
    NOTHING,
    Epilogue,
    Template,
    element,
    kernel_text,
    operand_names,
)

RUN = 512  # floats that are finished at once, at most
_KINDS = {"bool": "u8mem", "f32": "f32mem", "f64": "f64mem", "i32": "i32mem", "i64": "i64mem"}


def stream_floats(appended, vector_width: int):
    """Floats at `staged`, where so many are appended at once and moves reach a vector further.

    A text of their number gives the text of the sum.
    """
    spare = RUN + 2 * vector_width
    return f"{appended} + {spare}" if isinstance(appended, str) else appended + spare


def whole_lines(floats):
    """So many floats with those that fill a cache line: what threads have begins with one."""
    line = LINE // 4
    return (floats + line - 1) // line * line


def column_floats(channels: int) -> int:
    """How many floats of an operand of one number for each channel a finishing kernel reads."""
    return RUN + channels


def streaming(doc: str, arguments: tuple[str, ...], epilogue: Epilogue, body: str,
              scaled: bool = False) -> Template:
    """A Template whose body appends to a stream; `arguments` are those that `body` reads.

    `scaled`: what it appends is multiplied by `share` before it is finished.
    """
    source = kernel_text(doc, ("finish", *arguments), NOTHING, body)
    return Template(source, ("finish", *arguments, *operand_names(epilogue)),
                    finish=_finish(epilogue, scaled))


def stream_start(arguments: tuple[str, ...], share: str = "") -> str:
    """Lines for the top of a kernel with these arguments; `share` is the text of a scale."""
    scale = f"""
    share_at = local_f32(1)
    share = f32ptr(share_at)
    share[0] = {share}
    told[5] = share_at""" if share else ""
    return f"""
    told_at = local_i64(6)
    told = i64ptr(told_at)
    told[4] = args + {8 * (1 + len(arguments))}
    have = i64(0){scale}"""


def stream_drain(channels: str, vector_width: int, indent: int) -> str:
    """Lines that finish what waits, if it is much, in whole vectors; the rest comes to the front.

    `channels` is the text for the number of them.
    """
    lines = f"""
if have >= {RUN}:
    whole = have // {vector_width} * {vector_width}
{_finishing("whole", channels, 4)}
    move_1_{vector_width}(staged, staged + 4 * whole)
    start += whole
    have -= whole"""
    return _indented(lines, indent)


def stream_end(channels: str, indent: int) -> str:
    """Lines that finish what is left at the end of a thread's share."""
    return _finishing("have", channels, indent)


def _finishing(count: str, channels: str, indent: int) -> str:
    lines = f"""
for first in range(0, {count}, {RUN}):
    told[0], told[1], told[2] = staged + 4 * first, start + first, min(i64({RUN}), {count} - first)
    told[3] = (start + first) % max(i64(1), {channels})
    call_kernel(finish, told_at, tid, nthreads)"""
    return _indented(lines, indent)


def _finish(epilogue: Epilogue, scaled: bool) -> str:
    """The kernel that runs the epilogue over a run of numbers and stores them."""
    if any(operand.access == "row" for operand in epilogue.loads) or \
            any(operand.access != "matrix" for operand, _ in epilogue.stores):
        raise ValueError("a stream has no rows")
    operands = [*epilogue.loads, *(operand for operand, _ in epilogue.stores)]
    names = "out", "start", "count", "phase", "operands"
    lines = [*(f"{name} = block[{index}]" for index, name in enumerate(names)),
             "result = f32mem(out, 0)", "given = i64ptr(operands)"]
    for index, (name, operand) in enumerate(zip(operand_names(epilogue), operands, strict=True)):
        lines.append(f"p_{name} = {_KINDS[operand.dtype]}(given[{index}], {index + 1})")
        if operand.access == "scalar":
            test = " != 0" if operand.dtype == "bool" else ""
            lines.append(f"{name} = p_{name}[0]{test}")
    value = "result[e] * share" if scaled else "result[e]"
    if scaled:
        lines += ["scale = f32ptr(block[5])", "share = scale[0]"]
    lines.append("for e in range(count):")
    body = _indented("\n".join(lines), 4) + "\n" + \
        element(epilogue, value, "start + e", "phase + e", 8)
    return kernel_text("Finishes a run of numbers.", (), NOTHING, body)


def _indented(text: str, indent: int) -> str:
    return "\n".join(" " * indent + line for line in text.strip("\n").splitlines())
