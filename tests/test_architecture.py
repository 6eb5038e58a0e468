"""The four sentences of the design, enforced."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lamina.compiler.ops import OPS

ROOT = Path(__file__).parent.parent
FOLDERS = ("compiler", "runtime", "commands")


def sources():
    files = [ROOT / "api.py", ROOT / "cli.py"]
    return files + [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


def imports(path):
    """(module, whether inside a function) for each import of a file."""
    tree = ast.parse(path.read_text())
    inside = {id(node) for function in ast.walk(tree)
              if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
              for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in inside
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside


def test_import_contracts():
    # Sentences 1 to 3, as contracts over the whole import graph.
    check = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    found = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr


def test_library_imports_are_where_they_belong():
    # The linter's exceptions are files; this looks at the text, so that none is forgotten.
    allowed = {"networkx": {"compiler/ir/graph.py"}, "lark": {"compiler/syntax/parse.py"},
               "numba": {f"runtime/cpu/{name}.py"
                         for name in ("build", "simd", "tiles", "winograd", "emit")}}
    for path in sources():
        for module, _ in imports(path):
            library = module.partition(".")[0]
            if library in allowed:
                assert str(path.relative_to(ROOT)) in allowed[library], (path, module)


def test_no_import_inside_a_function_dodges_a_cycle():
    # Verbs import late to start fast; nothing else of ours is imported inside a function.
    late = {str(path.relative_to(ROOT)) for path in sources()
            for module, inside in imports(path) if inside and module.startswith("lamina")}
    assert late == {"cli.py"}


def test_every_operator_is_defined_once():
    # Sentence 4: one record, in one file.
    text = "\n".join(path.read_text() for path in (ROOT / "compiler" / "ops").glob("*.py"))
    named = re.findall(r'^@?(?:elementwise|primitive|composite|_unary)\("(\w+)"', text, re.M)
    assert len(named) == len(set(named))
    listed = set(named) | {"less", "less_equal", "greater", "greater_equal", "equal", "not_equal"}
    assert set(OPS) <= listed | _named_in_loops(text)


def _named_in_loops(text):
    return set(re.findall(r'\("(\w+)", "', text))


def test_a_warm_run_does_without_numba():
    # Sentence 1 in effect: what a model needs after its kernels exist.
    code = ("import sys, numpy, lamina\n"
            "net = lamina.load('lenet5').LeNet5()\n"
            "run = net.compile()\n"
            "run(net.init(), image=numpy.zeros((1, 1, 32, 32), numpy.float32))\n"
            "assert 'numba' not in sys.modules, 'numba was imported'\n")
    for _ in range(2):  # the first run may build kernels, in processes of their own
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert found.returncode == 0, found.stderr[-2000:]


def test_checking_imports_no_heavy_library():
    # `lamina check` answers in under half a second because of this.
    code = ("import sys\nfrom lamina.commands.checking import check_file\n"
            "assert check_file('lenet5') == []\n"
            "for name in ('numba', 'llvmlite', 'networkx', 'rich'):\n"
            "    assert name not in sys.modules, name\n")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]


def test_packages_are_listed():
    # Packages are listed by hand: a forgotten one would be missing from the wheel alone.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {"lamina"}
    for folder in (*FOLDERS, "grammar", "zoo"):
        for path in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join(["lamina", *path.parent.relative_to(ROOT).parts]))
    assert listed == found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path):
    # A newcomer reads the first line of each file.
    assert ast.get_docstring(ast.parse(path.read_text()))
