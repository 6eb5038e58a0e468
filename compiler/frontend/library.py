"""Where models come from: files, imports, the zoo and the standard layer library."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path

from lamina.compiler.errors import CompileError, Diagnostic, Note, Sink, Source, Span, suggest
from lamina.compiler.frontend.values import Binding, Builtin, Constant, Definition, OpRef, Scope
from lamina.compiler.ops import OPS
from lamina.compiler.syntax import ast
from lamina.compiler.syntax.parse import parse, read_source

BUILTINS = ("range", "enumerate", "len", "zip", "ceil", "floor", "list", "int", "float", "round",
            "pair")
CONSTANTS = {"none": None, "imagenet": "imagenet"}
# Functions of the language itself; `split` gives several values, so it is no operator.
FUNCTIONS = ("split", "choose")


def zoo_folder() -> Path:
    """The folder of the models that ship with Lamina."""
    return Path(str(resources.files("lamina.zoo")))


def zoo_models() -> list[str]:
    """Names of the zoo's files, without their ending."""
    return sorted(path.stem for path in zoo_folder().glob("*.lam"))


def find_file(name: str, beside: Path | None = None) -> Path:
    """A model file by path, or by its name in the zoo."""
    path = Path(name)
    if beside is not None and (beside / path).exists():
        return beside / path
    if path.exists() or path.suffix:
        return path if path.exists() or not _in_zoo(path.name) else zoo_folder() / path.name
    return zoo_folder() / f"{name}.lam" if _in_zoo(f"{name}.lam") else path


def _in_zoo(name: str) -> bool:
    return (zoo_folder() / name).exists()


class Module:
    """A parsed file with its names resolved: definitions, constants, imports and recipes."""

    def __init__(self, file: ast.File, folder: Path | None, library: bool = False,
                 loading: tuple[str, ...] = ()):
        self.file, self.folder, self.library = file, folder, library
        self.loading = (*loading, file.source.name)
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
        for declaration in self.file.declarations:
            if isinstance(declaration, ast.Alias):
                self._alias(declaration)

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
        target = alias.target.func
        assert isinstance(target, ast.Name)
        binding = self.scope.find(target.id)
        if binding is None or not isinstance(binding.value, Definition):
            self.sink.error("E301", f"no {alias.kind} is named `{target.id}`", target.span,
                            help=did_you_mean(target.id, self._names_of_definitions()))
            return
        base = binding.value
        if alias.target.args:
            self.sink.error("E405", "settings of a variant are given by name",
                            alias.target.args[0].span,
                            help=f"write `{target.id}(name=value)`")
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
        except CompileError as error:
            for diagnostic in error.diagnostics:
                self.sink.add(diagnostic)
            module = None
        for item in statement.names:
            name = item.alias or item.name
            if module is None:
                continue
            binding = module.scope.names.get(item.name.id)
            if binding is None:
                self.sink.error("E303", f'"{statement.file.value}" has no `{item.name.id}`',
                                item.name.span,
                                help=did_you_mean(item.name.id, module.scope.names))
                continue
            self.bind(name, Binding(binding.value, name.span, "global"))

    def _load_import(self, statement: ast.Import) -> Module:
        path = find_file(statement.file.value, self.folder)
        if not path.exists():
            raise CompileError(Diagnostic(
                "E304", f'cannot find the file "{statement.file.value}"', statement.file.span,
                help="paths are relative to this file, or names of the zoo"))
        if str(path) in self.loading:
            chain = " -> ".join(Path(name).name for name in (*self.loading, str(path)))
            raise CompileError(Diagnostic("E305", f"files import each other in a circle: {chain}",
                                          statement.file.span,
                                          help="move what both need into a third file"))
        return load_path(path, self.loading)


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


def load_path(path: Path, loading: tuple[str, ...] = ()) -> Module:
    """The module of a file. Raises CompileError for what cannot be read or does not parse."""
    return Module(parse(read_source(path)), path.parent, False, loading)


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
