"""Counting: what became of the records of every source, and when too many are lost."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from mmjax.data import encode
from mmjax.data.encode import Item

_ENOUGH = 1000                          # records, of which a share says something
_NAMED = 5                              # records that the log names for each reason


class TooManySkipped(ValueError):
    """More records of a data set are damaged than its share allows."""


def empty() -> dict[str, Any]:
    """Counters of one source: records that were read, those cut to size, tokens and images that were given out, and
    the records left out by reason."""
    return dict(records=0, truncated=0, tokens=0, images=0, skipped={})


def count(counters: Sequence[dict[str, Any]], item: Item) -> None:
    """Counts what became of a record in the counters of its source."""
    c = counters[item.draw.source]
    c["records"] += 1
    if item.encoded is None:
        c["skipped"][item.outcome] = c["skipped"].get(item.outcome, 0) + 1
        return
    c["truncated"] += item.outcome == encode.TRUNCATED
    c["tokens"] += len(item.encoded.tokens)
    c["images"] += len(item.encoded.visuals)


def add(*counters: Any) -> Any:
    """The sum of nested dicts of counts."""
    def two(a: Any, b: Any) -> Any:
        if not isinstance(a, Mapping):
            return a + b
        return {key: two(a[key], b[key]) if key in a and key in b else (a | b)[key] for key in a | b}

    return functools.reduce(two, counters)


def flat(counters: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """{set: {source: counters}} as scalars `data/set/source/what`."""
    out = {}
    for name, sources in counters.items():
        for source, c in sources.items():
            here = f"data/{name}/{source}"
            out |= {f"{here}/{what}": float(n) for what, n in c.items() if what != "skipped"}
            out |= {f"{here}/skipped/{reason}": float(n) for reason, n in c["skipped"].items()}
    return out


def check_share(name: str, sources: Mapping[str, Mapping[str, Any]], max_skipped: float) -> None:
    """Raises TooManySkipped if more than the share of a data set's records is damaged; names sources and reasons.

    Args:
        name: of the data set.
        sources: {source: counters}.
        max_skipped: the share, of the records that were read or of 1,000 if they are fewer.
    """
    faults = {source: {reason: n for reason, n in c["skipped"].items() if reason not in encode.POLICY}
              for source, c in sources.items()}
    total, records = sum(sum(f.values()) for f in faults.values()), sum(c["records"] for c in sources.values())
    if total > max_skipped * max(records, _ENOUGH):
        text = "; ".join(f"{source}: " + ", ".join(f"{n} x {reason}" for reason, n in f.items())
                         for source, f in faults.items() if f)
        raise TooManySkipped(f"data set {name!r}: {total} of {records} records cannot be used, more than "
                             f"max_skipped={max_skipped:g} of them (or of {_ENOUGH}): {text}. Mend the data, or raise "
                             "data.max_skipped")


class Names:
    """Names records that are left out in the log: each once, and of each reason the first few."""

    def __init__(self):
        self._said: dict[tuple[str, str], set[str]] = {}

    def say(self, name: str, record: str, item: Item) -> None:
        """Names the record unless it was, or enough were. `name`: of the data set."""
        said = self._said.setdefault((name, item.outcome), set())
        if item.outcome in encode.POLICY or record in said or len(said) > _NAMED:
            return
        said.add(record)
        if len(said) > _NAMED:
            logging.warning("data set %s: more is skipped, and counted: %s", name, item.outcome)
        else:
            logging.warning("data set %s: skipped %s: %s", name, record, item.outcome)


def outcomes(items: Iterable[Item]) -> dict[str, int]:
    """How many items there are of each outcome."""
    found: dict[str, int] = {}
    for item in items:
        found[item.outcome] = found.get(item.outcome, 0) + 1
    return found
