"""Datasets, transforms and batches.

    data = open_data(stages, folder=Path("zoo"), seed=1998)
    for batch in Batches(data, 128).epoch(0): ...
"""

from lamina.runtime.data.batches import Batch, Batches, prefetch
from lamina.runtime.data.dataset import Dataset, Input, check_stages, open_data
from lamina.runtime.data.errors import CODES, DataError
from lamina.runtime.data.feeding import feed
from lamina.runtime.data.stage import Stage

__all__ = [
    "CODES",
    "Batch",
    "Batches",
    "DataError",
    "Dataset",
    "Input",
    "Stage",
    "check_stages",
    "feed",
    "open_data",
    "prefetch",
]
