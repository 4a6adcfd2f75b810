"""The saved position of a loader: what it is valid for, and what it would cost to ignore that."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from mmjax.data.config import LoaderConfig
from mmjax.data.sources import DocumentSource

_VERSION = 2
Sources = Mapping[str, Sequence[DocumentSource]]


def fingerprint(config: LoaderConfig, tokenizer: str, streams: int, sources: Sources | None = None) -> dict[str, Any]:
    """All that decides which data comes when, flat and as JSON values. A folder may move, its files not change.

    Args:
        config: what is read.
        tokenizer: the fingerprint of its tokenizer.
        streams: how many there are.
        sources: of every data set, if they are open already.
    """
    out = dict(seed=config.seed, tokenizer=tokenizer, streams=streams)
    for name, c in config.sets.items():
        opened = sources[name] if sources else [s.open() for s in c.sources]
        values = dataclasses.asdict(c)
        del values["loss_weight"]
        values["sources"] = {str(k): dict(format=s.format, options=dict(s.options), files=o.fingerprint())
                             for k, (s, o) in enumerate(zip(c.sources, opened, strict=True))}
        out |= _flatten(f"sets.{name}", values)
    return json.loads(json.dumps(out))          # lists for tuples, as they come back


def write(print_: Mapping[str, Any], config: LoaderConfig, streams: Mapping[int, Any]) -> bytes:
    """A position. `streams`: of every stream of this process the positions and counters of its data sets."""
    weights = {name: [s.weight for s in c.sources] for name, c in config.sets.items()}
    return json.dumps(dict(version=_VERSION, fingerprint=print_, weights=weights, streams=streams)).encode()


def read(states: Sequence[bytes], print_: Mapping[str, Any], config: LoaderConfig) -> dict[int, Any]:
    """The positions of streams in one or several states.

    Raises:
        ValueError: if one is no state of a Loader, or of other settings; names them and what would be lost.
    """
    streams = {}
    for state in states:
        then = _parse(state)
        changed = [k for k in sorted(then["fingerprint"].keys() | print_.keys())
                   if then["fingerprint"].get(k, "absent") != print_.get(k, "absent")]
        if changed:
            lines = "; ".join(f"{k} was {_short(then['fingerprint'].get(k, 'absent'))}, "
                              f"is {_short(print_.get(k, 'absent'))}" for k in changed)
            raise ValueError(f"the saved data position belongs to other settings: {lines}. {_loss(then)} Restore the "
                             "settings (streams are set by data.streams), or start the data anew without its state")
        streams |= {int(k): value for k, value in then["streams"].items()}
        for name, c in config.sets.items():
            if (now := [s.weight for s in c.sources]) != then["weights"][name]:
                logging.info("data set %s: weights were %s, are %s from here on", name, then["weights"][name], now)
    return streams


def _parse(state: bytes) -> dict[str, Any]:
    try:
        value = json.loads(state)
        if value["version"] != _VERSION:
            raise ValueError(f"it is of version {value['version']}, this release reads version {_VERSION}")
        return {key: dict(value[key]) for key in ("fingerprint", "weights", "streams")}
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"not the state of a Loader: {len(state)} bytes, {e!r}") from e


def _loss(then: Mapping[str, Any]) -> str:
    """What going on in another order would do to the epoch under way: every order keeps its own share of it."""
    parts = []
    for name in next(iter(then["streams"].values()), {}):
        for k in range(len(then["weights"][name])):
            files = then["fingerprint"].get(f"sets.{name}.sources.{k}.files", [])
            total = sum(documents for *_, documents in files)
            read_ = sum(s[name]["counters"][k]["records"] for s in then["streams"].values()) % max(1, total)
            lost = round(read_ * (total - read_) / max(1, total))
            parts.append(f"{name} source {k}: {lost} of {total}")
    return ("To go on from it all the same would lose, and read twice, about as many records of the epoch under way: "
            f"{', '.join(parts)}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:200]} ... {text[-80:]}"


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flatten(f"{prefix}.{key}", item).items()}
