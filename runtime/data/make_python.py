"""Makes a text for language models from Python's own standard library, which every machine has:

    python -m lamina.runtime.data.make_python TARGET_FOLDER

TARGET gets `python.train.txt` and `python.valid.txt`: the source files one after the other, without
their tests. One file in twenty is held out. Which Python it is changes the text.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from lamina.runtime.data.holdout import held_out, write_parts

FILES = ("python.train.txt", "python.valid.txt")
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3",
             "pydoc_data", "encodings", "__pycache__"}


def read_files(folder: Path) -> dict[str, str]:
    """The source files below a folder by name, in order; what is not ASCII is left out."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        data = path.read_bytes()
        if not _LEFT_OUT & set(name.parts) and data.isascii():
            found[name.as_posix()] = data.decode("ascii").replace("\r\n", "\n").rstrip("\n")
    return found


def make(folder: Path, target: Path) -> dict[str, int]:
    """Write both files; how many source files each has."""
    files = read_files(folder)
    return write_parts(target, FILES, files.items(), held_out(files))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(make(Path(sysconfig.get_path("stdlib")), Path(sys.argv[1])))
