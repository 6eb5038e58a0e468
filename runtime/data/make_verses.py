"""Makes English sentences with their Spanish from Debian's `sword-text-web` and `sword-text-sparv`:

    apt-get download sword-text-web sword-text-sparv
    for package in *.deb; do dpkg -x $package sword; done
    python -m lamina.runtime.data.make_verses sword/usr/share/sword TARGET_FOLDER

The World English Bible and the Reina-Valera of 1909, both in the public domain, verse by verse.
TARGET gets `verses.train.tsv` and `verses.valid.tsv`: English, a tab, Spanish; words and signs are
parted by blanks. One chapter in twenty is held out.
"""

from __future__ import annotations

import html
import re
import struct
import sys
import zlib
from pathlib import Path

from lamina.runtime.data.holdout import held_out, write_parts

FILES = ("verses.train.tsv", "verses.valid.tsv")
ENGLISH, SPANISH = "engWEB2015eb", "spaRV1909eb"
_BLOCK = struct.Struct("<III")  # of a testament's block: place, packed size, size
_VERSE = struct.Struct("<IIH")  # of a verse: block, place in it, size
_CHAPTER = re.compile(r'<chapter [^>]*osisID="([\w.]+)"')
_END = "<chapter eID="  # what follows belongs to the next book
_ASIDE = re.compile(r"<(note|title)\b[^>]*>.*?</\1>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_TOKEN = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]")


def read_entries(folder: Path, testament: str) -> list[str]:
    """The marked-up entries of a testament ("ot" or "nt") of a zText module, in their order.

    A book's and a chapter's heading are entries of their own.
    """
    index, places, packed = ((folder / f"{testament}.{ending}").read_bytes()
                             for ending in ("bzs", "bzv", "bzz"))
    blocks = [zlib.decompress(packed[start : start + size]) if size else b""
              for start, size, _ in _BLOCK.iter_unpack(index)]
    return [blocks[block][start : start + size].decode() if size else ""
            for block, start, size in _VERSE.iter_unpack(places)]


def read_chapters(folder: Path) -> dict[str, list[str]]:
    """The verses of each chapter of a module, as words; a verse that it lacks is empty."""
    chapters: dict[str, list[str]] = {}
    for testament in ("ot", "nt"):
        verses: list[str] = []
        for entry in read_entries(folder, testament):
            heading = _CHAPTER.search(entry)
            if heading:
                verses = chapters[heading[1]] = []
            else:
                verses.append(plain(entry))
    return chapters


def plain(entry: str) -> str:
    """The text of an entry, its words and signs parted by blanks."""
    text = html.unescape(_TAG.sub("", _ASIDE.sub(" ", entry.split(_END)[0])))
    return " ".join(_TOKEN.findall(text))


def alike(one: list[str], other: list[str]) -> bool:
    """Whether two verses can mean the same: in some chapters they are numbered otherwise."""
    fewer, more = sorted((len(one), len(other)))
    return fewer > 0 and more <= 2 * fewer + 8


def make(sword: Path, target: Path) -> dict[str, int]:
    """Write both files; how many verses each has."""
    base = sword / "modules" / "texts" / "ztext"
    english, spanish = read_chapters(base / ENGLISH), read_chapters(base / SPANISH)
    shared = [name for name in english if name in spanish]
    lines = ((name, f"{one}\t{other}") for name in shared
             for one, other in zip(english[name], spanish[name], strict=False)
             if alike(one.split(), other.split()))
    return write_parts(target, FILES, lines, held_out(shared))


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), Path(sys.argv[2])))
