"""Where models come from: files, imports, the zoo and the standard layer library."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from lamina.compiler.errors import CompileError, Diagnostic, Note, Sink, Source, Span, suggest
from lamina.compiler.frontend.values import (
    BROKEN,
    Binding,
    Builtin,
    Constant,
    Definition,
    OpRef,
    Scope,
)
from lamina.compiler.ops import OPS
from lamina.compiler.syntax import ast
from lamina.compiler.syntax.parse import parse, read_source

BUILTINS = ("range", "enumerate", "len", "zip", "ceil", "floor", "list", "int", "float", "round",
            "pair")
CONSTANTS = {"none": None, "imagenet": "imagenet"}
MAX_IMPORTS = 50  # files on the way from a model to the last that it imports
# Functions of the language itself; `split` gives several values, so it is no operator.
FUNCTIONS = ("split", "choose", "lengths")


def zoo_folder() -> Path:
    """The folder of the models that ship with Lamina."""
    return Path(str(resources.files("lamina.zoo")))


def zoo_models() -> list[str]:
    """Names of the zoo's files, without their ending."""
    return sorted(path.stem for path in zoo_folder().glob("*.lam"))


def find_file(name: str, beside: Path | None = None) -> Path:
    """A model file by path, or by its name in the zoo."""
    path = Path(name)
    if beside is not None and _exists(beside / path):
        return beside / path
    if _exists(path) or path.suffix:
        return path if _exists(path) or not _in_zoo(path.name) else zoo_folder() / path.name
    return zoo_folder() / f"{name}.lam" if _in_zoo(f"{name}.lam") else path


def _in_zoo(name: str) -> bool:
    return _exists(zoo_folder() / name)


class Module:
    """A parsed file with its names resolved: definitions, constants, imports and recipes.

    `importers` are the files on the way here, `loaded` the modules that they have in common.
    """

    def __init__(self, file: ast.File, folder: Path | None, library: bool = False,
                 importers: tuple[Path, ...] = (), loaded: dict[Path, Module] | None = None):
        self.file, self.folder, self.library = file, folder, library
        self.importers = (*importers, Path(file.source.name).absolute())
        self.loaded = {} if loaded is None else loaded
        self.sink = Sink()
        self.scope = Scope(standard_scope())
        self.definitions: dict[str, Definition] = {}
        self.recipes: dict[str, ast.Recipe] = {}
        self.constants: list[ast.Const] = []
        self._declare()

    @property
    def models(self) -> dict[str, Definition]:
        """The models that this file defines, in order."""
        return {name: d for name, d in self.definitions.items() if d.kind == "model"}

    def _declare(self) -> None:
        for declaration in self.file.declarations:
            if isinstance(declaration, ast.Import):
                self._import(declaration)
            elif isinstance(declaration, (ast.Model, ast.Block, ast.Cell)):
                kind = type(declaration).__name__.lower()
                self._define(declaration.name, Definition(kind, declaration, self.scope, (),
                                                          declaration.name.id, self.library))
            elif isinstance(declaration, ast.Recipe):
                self._recipe(declaration)
            elif isinstance(declaration, ast.Const):
                self.constants.append(declaration)
                self.bind(declaration.name, Binding(Constant(declaration, self.scope),
                                                    declaration.name.span, "local",
                                                    declaration.value, self.scope))
        self._aliases([d for d in self.file.declarations if isinstance(d, ast.Alias)])

    def _aliases(self, waiting: list[ast.Alias]) -> None:
        """Define variants, those that others build on first."""
        while waiting:
            names = {alias.name.id for alias in waiting}
            ready = [alias for alias in waiting if _base(alias).id not in names]
            if not ready:
                one = waiting.pop(0)
                self.sink.error("E402", f"`{one.name.id}` is a variant of itself", one.name.span,
                                help="one of the variants must name a definition with a body")
                self.bind(one.name, Binding(BROKEN, one.name.span, "global"))
                continue
            for alias in ready:
                self._alias(alias)
            waiting = [alias for alias in waiting if alias not in ready]

    def _define(self, name: ast.Name, definition: Definition) -> None:
        self.bind(name, Binding(definition, name.span, "global"))
        self.definitions.setdefault(name.id, definition)

    def bind(self, name: ast.Name, binding: Binding) -> None:
        """Bind a top-level name. A second binding is E302."""
        known = self.scope.names.get(name.id)
        if known is not None:
            self.sink.error("E302", f"`{name.id}` is defined twice in this file", name.span,
                            notes=() if known.span is None else (_first_note(known.span),),
                            help="rename one of them")
            return
        self.scope.names[name.id] = binding

    def _recipe(self, recipe: ast.Recipe) -> None:
        if recipe.name.id in self.recipes:
            first = self.recipes[recipe.name.id].name.span
            self.sink.error("E302", f"recipe `{recipe.name.id}` is defined twice in this file",
                            recipe.name.span, notes=(_first_note(first),),
                            help="rename one of them")
        self.recipes[recipe.name.id] = recipe

    def _alias(self, alias: ast.Alias) -> None:
        target = _base(alias)
        binding = self.scope.find(target.id)
        if binding is not None and binding.value is BROKEN:
            self.bind(alias.name, Binding(BROKEN, alias.name.span, "global"))
            return
        if binding is None or not isinstance(binding.value, Definition):
            self.sink.error("E301", f"no {alias.kind} is named `{target.id}`", target.span,
                            help=did_you_mean(target.id, self._names_of_definitions()))
            self.bind(alias.name, Binding(BROKEN, alias.name.span, "global"))
            return
        base = binding.value
        if base.kind != alias.kind:
            self.sink.error("E301", f"no {alias.kind} is named `{target.id}`: it is a {base.kind}",
                            target.span, help=f"write `{base.kind} {alias.name.id} = ...`")
            self.bind(alias.name, Binding(BROKEN, alias.name.span, "global"))
            return
        if alias.target.args:
            self.sink.error("E405", "settings of a variant are given by name",
                            alias.target.args[0].span,
                            help=f"write `{target.id}(name=value)`")
            self.bind(alias.name, Binding(BROKEN, alias.name.span, "global"))
            return
        settings = [parameter.name.id for parameter in base.node.params]
        for word in alias.target.kwargs:
            if word.name.id not in settings:
                self.sink.add(unknown_setting(base, word))
        given = {word.name.id for word in alias.target.kwargs}
        kept = tuple(word for word in base.settings if word.name.id not in given)
        self._define(alias.name, Definition(base.kind, base.node, base.scope,
                                            (*kept, *alias.target.kwargs), alias.name.id,
                                            self.library))

    def _names_of_definitions(self) -> list[str]:
        return [n for n in self.scope.visible()
                if isinstance(getattr(self.scope.find(n), "value", None), Definition)]

    def _import(self, statement: ast.Import) -> None:
        try:
            module = self._load_import(statement)
            problems = module.sink.diagnostics
        except CompileError as error:
            module, problems = None, error.diagnostics
        for diagnostic in problems:
            self.sink.add(diagnostic)
        for item in statement.names:
            name = item.alias or item.name
            # What cannot be had stays silent where it is used.
            value: Any = BROKEN if module is None else self._imported(module, statement, item)
            self.bind(name, Binding(value, name.span, "global"))

    def _imported(self, module: Module, statement: ast.Import, item: ast.ImportName) -> Any:
        binding = module.scope.names.get(item.name.id)
        if binding is not None:
            return binding.value
        names = list(module.scope.names)
        self.sink.error("E303", f'"{statement.file.value}" has no `{item.name.id}`',
                        item.name.span, help=did_you_mean(item.name.id, names) or
                        f"it has {', '.join(names[:20]) or 'no definitions'}")
        return BROKEN

    def _load_import(self, statement: ast.Import) -> Module:
        written, span = statement.file.value, statement.file.span
        path = find_file(written, self.folder)
        place = Path(os.path.normpath(path.absolute()))
        if not _exists(path):
            raise CompileError(Diagnostic(
                "E304", f'cannot find the file "{written}"', span,
                help="paths are relative to this file, or names of the zoo"))
        if place in self.importers:
            around = self.importers[self.importers.index(place):]
            chain = " -> ".join(file.name for file in (*around, place))
            raise CompileError(Diagnostic("E305", f"files import each other in a circle: {chain}",
                                          span, help="move what both need into a third file"))
        if len(self.importers) > MAX_IMPORTS:
            raise CompileError(Diagnostic("E900", f"imports are nested more than {MAX_IMPORTS} "
                                          "deep", span, help="join some of the files"))
        if place not in self.loaded:
            self.loaded[place] = Module(parse(read_source(path)), path.parent, False,
                                        self.importers, self.loaded)
        return self.loaded[place]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


def _base(alias: ast.Alias) -> ast.Name:
    assert isinstance(alias.target.func, ast.Name)
    return alias.target.func


def unknown_setting(definition: Definition, word: ast.Keyword, path: str = "") -> Diagnostic:
    """The diagnostic for a setting that a definition does not have."""
    names = [parameter.name.id for parameter in definition.node.params]
    return Diagnostic("E409", f"`{definition.name}` has no setting `{word.name.id}`",
                      word.name.span, (), (Note("defined here", definition.node.name.span),),
                      did_you_mean(word.name.id, names) or
                      f"its settings: {', '.join(names) or 'none'}", path)


def _first_note(span: Span) -> Note:
    return Note("first defined here", span)


def did_you_mean(word: str, candidates) -> str | None:
    """Help for a misspelt name, or None."""
    found = suggest(word, candidates)
    return f"did you mean `{found}`?" if found else None


def load_text(text: str, name: str = "<text>", folder: Path | None = None) -> Module:
    """The module of a source text. Raises CompileError for what does not parse."""
    return Module(parse(Source(name, text)), folder)


def load_path(path: Path) -> Module:
    """The module of a file. Raises CompileError for what cannot be read or does not parse."""
    return Module(parse(read_model(path)), path.parent)


def read_model(path: Path) -> Source:
    """The text of a file that a user named. Raises CompileError; its help lists what there is."""
    try:
        return read_source(path)
    except CompileError as error:
        if _exists(path):
            raise
        beside = [file.name for file in Path().glob("*.lam")]
        zoo = zoo_models()
        known = beside if path.suffix else [*beside, *zoo]
        help = did_you_mean(str(path), known) or \
            f"give a path, or a name of the zoo: {', '.join(zoo[:12])}"
        raise CompileError(*(replace(d, help=help) for d in error.diagnostics)) from None


@cache
def _base_scope() -> Scope:
    """Operators, compile-time functions and constants: what every file sees."""
    scope = Scope()
    for name, op in OPS.items():
        if op.public:
            scope.names[name] = Binding(OpRef(op), None, "global")
    for name in (*BUILTINS, *FUNCTIONS):
        scope.names[name] = Binding(Builtin(name), None, "global")
    for name, value in CONSTANTS.items():
        scope.names[name] = Binding(value, None, "global")
    return scope


class _Standard(Scope):
    """The layer library: files are parsed when one of their names is first looked up."""

    def find(self, name: str) -> Binding | None:
        if name in _standard_index():
            return standard_module(_standard_index()[name]).scope.names.get(name)
        return self.parent.find(name) if self.parent else None

    def visible(self):
        yield from _standard_index()
        if self.parent:
            yield from self.parent.visible()


def standard_scope() -> Scope:
    """The layer library over the operators."""
    return _Standard(_base_scope())


@cache
def _standard_index() -> dict[str, Path]:
    """Which library file defines a name."""
    index = {}
    for path in sorted((zoo_folder() / "std").glob("*.lam")):
        for name in re.findall(r"^(?:block|cell|model)[ \t]+(\w+)", path.read_text("utf-8"), re.M):
            index[name] = path
    return index


@cache
def standard_module(path: Path) -> Module:
    """A file of the layer library. Library files see each other and all operators."""
    text = read_source(path).text  # named from the house's root, wherever it is installed
    return Module(parse(Source(f"zoo/std/{path.name}", text)), path.parent, library=True)
