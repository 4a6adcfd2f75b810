"""Elements of a JSON list found by a whole number they have."""

from typing import Any

import numpy as np

from mmjax.data.documents import DocumentError
from mmjax.data.sources.index import Index, cached_index
from mmjax.data.sources.records import Records, take


class ById:
    """Looks up the objects of a list by a whole number they have; those without it cannot be found.

    Args:
        file, field: the file, and its list that `records` are.
        name: the field of the objects that holds the number.
        records: the objects.
    """

    def __init__(self, file: str, field: str, name: str, records: Records):
        index = cached_index(file, f"{field}-by-{name}", lambda f: _index_ids(records, name))
        self._ids, self._places = index["ids"], index["places"]
        self._records, self._what = records, f"{name} of {field}"

    def object(self, number: int) -> dict[str, Any]:
        """The object with that number, the first of several. Raises DocumentError if there is none."""
        at = int(np.searchsorted(self._ids, number)) if -2**63 <= number < 2**63 else len(self._ids)
        if at == len(self._ids) or self._ids[at] != number:
            raise DocumentError(f"{number} is no {self._what}")
        return self._records.object(int(self._places[at]))


def _index_ids(records: Records, name: str) -> Index:
    ids, places = [], []
    for k in range(len(records)):
        try:
            number = take(records.object(k), name, int)
        except DocumentError:
            continue
        if -2**63 <= number < 2**63:
            ids.append(number)
            places.append(k)
    order = np.argsort(np.array(ids, np.int64), kind="stable")
    return dict(ids=np.array(ids, np.int64)[order], places=np.array(places, np.int64)[order])
