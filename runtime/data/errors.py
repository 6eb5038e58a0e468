"""What can be wrong with data."""

from __future__ import annotations

from lamina.runtime.errors import Failure

CODES: dict[str, str] = {
    "E601": "data not found",
    "E602": "unreadable data file",
    "E603": "damaged data file",
    "E604": "damaged picture",
    "E605": "no data",
    "E606": "unknown data source",
    "E607": "unknown transform",
    "E608": "bad argument of a data source, transform or schedule",
    "E609": "data of the wrong size",
    "E610": "label out of range",
    "E611": "data does not fit the model's inputs",
    "E612": "optional package missing",
    "E613": "data pipeline out of order",
}


class DataError(Failure):
    """Data that is missing, damaged or does not fit (codes E601 to E613)."""
