"""Names without a build: what a definition that nothing instantiates refers to.

Only what is wrong in every instance is told: a name that nothing binds, a setting that a known
layer or operator does not have, and what is not supported yet.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from typing import Any

from lamina.compiler.errors import Diagnostic, Sink, Span
from lamina.compiler.frontend.expressions import name_help
from lamina.compiler.frontend.library import Module, did_you_mean, unknown_setting
from lamina.compiler.frontend.shapes import is_symbol_name
from lamina.compiler.frontend.values import Builtin, Definition, OpRef, Scope
from lamina.compiler.ops.define import HIDDEN, REGISTRY
from lamina.compiler.ops.initial import INITIALIZERS
from lamina.compiler.syntax import ast

SPECIAL = frozenset(("training", "rng", "_", "op"))
SPLIT = ("parts", "axis")


def check_names(module: Module, built: Container[Any] = ()) -> tuple[Diagnostic, ...]:
    """What is wrong with the names of every definition of a file, used or not.

    `built` are the nodes of definitions that a build went through: of their conditionals only the
    chosen branch counts, and the build has told what is wrong with it.
    """
    sink = Sink()
    for declaration in module.file.declarations:
        if isinstance(declaration, (ast.Model, ast.Block, ast.Cell)):
            _Names(module.scope, declaration, sink, declaration not in built).check()
        elif isinstance(declaration, ast.Alias):
            outside = _Names(module.scope, None, sink)
            outside.visit_all(word.value for word in declaration.target.kwargs)
        elif isinstance(declaration, ast.Const):
            _Names(module.scope, None, sink).visit(declaration.value)
    return sink.diagnostics


class _Names:
    """The names of one definition, or (without one) those of the top level of a file."""

    def __init__(self, scope: Scope, node: ast.Model | ast.Block | ast.Cell | None, sink: Sink,
                 branches: bool = True):
        self.scope, self.node, self.sink, self.branches = scope, node, sink, branches
        self.bound: set[str] = set()
        self.later: set[str] = set() if node is None else _all_bound(node)
        self.lazy = False  # inside a layer that is applied later, when more names are bound

    def check(self) -> None:
        """Every statement in order; a name can be used below the line that binds it."""
        assert self.node is not None
        for parameter in self.node.params:
            self.visit(parameter.default)
            self.bound.add(parameter.name.id)
        for statement in self.node.body:
            _STATEMENTS.get(type(statement), _Names._skip)(self, statement)

    def error(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        """Report an error of this definition."""
        self.sink.error(code, message, span, help=help, path=self.node.name.id if self.node else "")

    # --- statements -----------------------------------------------------------------------------

    def _skip(self, statement: Any) -> None:
        """Ties name parameters by path: only a build knows them."""

    def _input(self, statement: ast.Input) -> None:
        self.visit(statement.value)
        self._annotation(statement.annotation, True)
        self.bound.add(statement.name.id)

    def _param(self, statement: ast.Param | ast.Buffer) -> None:
        self._initial(statement.value)
        self._annotation(statement.annotation, False)
        self.bound.add(statement.name.id)

    def _state(self, statement: ast.State | ast.Memory) -> None:
        self._annotation(statement.annotation, True)
        self.visit(statement.value)
        if isinstance(statement, ast.Memory):
            self.bound.add(statement.name.id)

    def _shared(self, statement: ast.Shared) -> None:
        self._lazily(statement.value)
        self.bound.add(statement.name.id)

    def _assert(self, statement: ast.Assert) -> None:
        self.visit(statement.condition)

    def _assign(self, statement: ast.Assign) -> None:
        self.visit(statement.value)
        self._annotation(statement.annotation, True)
        self.bound |= {name.id for name in statement.targets}

    def _output(self, statement: ast.Output) -> None:
        for item in statement.items:
            self.visit(item.name if item.value is None else item.value)
            self._annotation(item.annotation, True)
            self.bound.add(item.name.id)

    def _annotation(self, annotation: ast.Type | None, solves: bool) -> None:
        """The sizes of a shape; where it `solves`, a capital letter binds a symbol."""
        for dim in annotation.dims if isinstance(annotation, ast.TensorType) else ():
            if solves:
                self.bound |= _symbols(dim.value)
            if isinstance(dim.value, ast.Name) and self._unknown(dim.value) and solves:
                name = dim.value.id
                self.error("E301", f"`{name}` is not defined here", dim.value.span,
                           f"a symbol starts with a capital letter: `{name[:20].capitalize()}`")
            elif not isinstance(dim.value, ast.Dots):
                self.visit(dim.value)

    def _initial(self, expr: Any) -> None:
        """Where a parameter starts: an initialiser is no other name."""
        if isinstance(expr, ast.Conditional):
            self.visit(expr.condition)
            for branch in (expr.then, expr.otherwise) if self.branches else ():
                self._initial(branch)
        elif isinstance(expr, ast.Call) and isinstance(expr.func, ast.Name):
            if expr.func.id not in INITIALIZERS:
                self.error("E320", f"no initialiser is named `{expr.func.id}`", expr.func.span,
                           did_you_mean(expr.func.id, INITIALIZERS) or
                           f"initialisers: {', '.join(INITIALIZERS)}")
            self.visit_all((*expr.args, *(word.value for word in expr.kwargs)))
        else:
            self.visit(expr)

    # --- expressions ----------------------------------------------------------------------------

    def visit(self, node: Any) -> None:
        """The names of an expression, a stage, or nothing (None)."""
        if isinstance(node, tuple):
            self.visit_all(node)
        elif ast.is_node(node):
            _EXPRESSIONS.get(type(node), _Names._parts)(self, node)

    def visit_all(self, nodes: Iterable[Any]) -> None:
        """The names of several expressions."""
        for node in nodes:
            self.visit(node)

    def _parts(self, node: Any) -> None:
        self.visit_all(ast.parts(node))

    def _lazily(self, node: Any) -> None:
        """A layer that is applied later: it sees the names of the whole body."""
        before, self.lazy = self.lazy, True
        self.visit(node)
        self.lazy = before

    def _unknown(self, expr: ast.Name) -> bool:
        known = expr.id in self.bound or expr.id in SPECIAL or self.lazy and expr.id in self.later
        return not known and self.scope.find(expr.id) is None

    def _name(self, expr: ast.Name) -> None:
        if self._unknown(expr):
            body = self.node.body if self.node else ()
            self.error("E301", f"`{expr.id}` is not defined here", expr.span,
                       name_help(body, expr, (*self.bound, *self.scope.visible())))

    def _attribute(self, expr: ast.Attribute) -> None:
        if isinstance(expr.value, ast.Name) and expr.value.id == "op" and "op" not in self.bound:
            if expr.name not in REGISTRY:
                self.error("E301", f"no operator is named `{expr.name}`", expr.span,
                           did_you_mean(expr.name, REGISTRY))
            return
        self.visit(expr.value)

    def _prev(self, expr: ast.Prev) -> None:
        """Only a build knows the states of a cell."""

    def _conditional(self, expr: ast.Conditional) -> None:
        self.visit(expr.condition)
        if self.branches:
            self.visit_all((expr.then, expr.otherwise))

    def _call(self, expr: ast.Call) -> None:
        """A call outside of a flow: of a layer's settings, or of a function."""
        value = self._callee(expr)
        if isinstance(value, Definition):
            self._lazily(expr.args)
            self._lazily(tuple(word.value for word in expr.kwargs))
            self.visit(expr.func)
        else:
            self.visit_all((expr.func, *expr.args, *(word.value for word in expr.kwargs)))
        self._settings(value, expr)

    def _callee(self, expr: ast.Call) -> Any:
        """What a call calls, where the file alone tells it."""
        if not isinstance(expr.func, ast.Name) or expr.func.id in self.later | self.bound:
            return None
        binding = self.scope.find(expr.func.id)
        return binding.value if binding is not None else None

    def _settings(self, value: Any, expr: ast.Call) -> None:
        """Each keyword must be a setting of what is called."""
        for word in expr.kwargs:
            if isinstance(value, Definition):
                if all(word.name.id != known.name.id for known in value.node.params):
                    path = self.node.name.id if self.node else ""
                    self.sink.add(replace(unknown_setting(value, word), path=path))
            elif isinstance(value, OpRef):
                self._operator_setting(value.op.name, tuple(value.op.attrs), word)
            elif isinstance(value, Builtin) and value.name == "split":
                self._operator_setting("split", SPLIT, word)

    def _operator_setting(self, name: str, known: tuple[str, ...], word: ast.Keyword) -> None:
        names = tuple(one for one in known if one not in HIDDEN)
        if word.name.id not in names:
            self.error("E202", f"`{name}` has no setting `{word.name.id}`", word.name.span,
                       did_you_mean(word.name.id, names) or
                       f"its settings: {', '.join(names) or 'none'}")

    # --- flows ----------------------------------------------------------------------------------

    def _stage(self, stage: ast.Stage) -> None:
        self.visit(stage.body)

    def _for(self, body: ast.For) -> None:
        self.visit(body.iterable)
        before = self.bound
        self.bound = before | {target.id for target in body.targets}
        self.visit(body.body)
        self.bound = before

    def _scan(self, body: ast.Scan) -> None:
        """Its condition speaks of the cell's outputs, which only a build knows."""
        self.visit_all((body.cell, body.dim, body.limit,
                        *(binding.value for binding in body.bindings)))


def _all_bound(node: ast.Model | ast.Block | ast.Cell) -> set[str]:
    """Every name that a body binds somewhere."""
    found = {parameter.name.id for parameter in node.params}
    for statement in node.body:
        items = statement.items if isinstance(statement, ast.Output) else (statement,)
        for item in items:
            names = item.targets if isinstance(item, ast.Assign) else (getattr(item, "name", None),)
            found |= {name.id for name in names if isinstance(name, ast.Name)}
            annotation = getattr(item, "annotation", None)
            for dim in annotation.dims if isinstance(annotation, ast.TensorType) else ():
                found |= _symbols(dim.value)
    return found


def _symbols(expr: Any) -> set[str]:
    """The names in a size that are symbols where nothing else binds them."""
    found, todo = set(), [expr]
    while todo:
        one = todo.pop()
        if isinstance(one, tuple):
            todo += one
        elif isinstance(one, ast.Name):
            found |= {one.id} if is_symbol_name(one.id) else set()
        elif ast.is_node(one):
            todo += ast.parts(one)
    return found


_STATEMENTS: dict[type, Callable[[_Names, Any], None]] = {
    ast.Input: _Names._input, ast.Param: _Names._param, ast.Buffer: _Names._param,
    ast.State: _Names._state, ast.Memory: _Names._state, ast.Shared: _Names._shared,
    ast.Assert: _Names._assert, ast.Assign: _Names._assign, ast.Output: _Names._output,
}
_EXPRESSIONS: dict[type, Callable[[_Names, Any], None]] = {
    ast.Name: _Names._name, ast.Attribute: _Names._attribute, ast.Prev: _Names._prev,
    ast.Call: _Names._call, ast.Stage: _Names._stage, ast.For: _Names._for,
    ast.Scan: _Names._scan, ast.Conditional: _Names._conditional,
}
