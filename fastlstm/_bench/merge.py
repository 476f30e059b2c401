"""One result of several processes: peers that cannot share an environment run in environments of their own,
one after the other, and each process times fastlstm beside its peers as the measure common to all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .measure import comparisons

NOT_INSTALLED = "not installed"


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first part's machine, roofline and figures of ours; the peers of all, each with its `ratio` to
    fastlstm in its own process, and there, where it is not the first, the `fastlstm_us` of that process."""
    result: dict[str, Any] = dict(parts[0])
    settings = result["settings"] = dict(result["settings"])
    result["versions"] = dict(result["versions"])
    settings["peers"] = [name for part in parts for name in part["settings"]["peers"]]
    settings["how"] = {name: how for part in reversed(parts) for name, how in part["settings"]["how"].items()}
    settings["not_installed"] = [
        name for name in settings["not_installed"] if name not in settings["peers"]
    ]  # fmt: skip
    for part in parts[1:]:
        result["versions"] = part["versions"] | result["versions"]
    result["environments"] = [part["versions"] for part in parts]
    result["rows"] = [_row(rows) for rows in zip(*(part["rows"] for part in parts), strict=True)]
    return result


def _row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    assert len({row["name"] for row in rows}) == 1
    row = dict(rows[0])
    cannot: dict[str, str] = {}
    for other in rows:
        for name, reason in other.get("cannot", {}).items():
            if cannot.get(name, NOT_INSTALLED) == NOT_INSTALLED:
                cannot[name] = reason
    engines = dict(row.get("engines", {}))
    left_out = dict(row.get("left_out", {}))
    for other in rows[1:]:
        for name, engine in other.get("engines", {}).items():
            if name not in engines:
                engines[name] = {**engine, "fastlstm_us": other["us"]}
        left_out |= {name: text for name, text in other.get("left_out", {}).items() if name not in left_out}
    gone = engines.keys() | left_out.keys()
    row["cannot"] = {name: reason for name, reason in cannot.items() if name not in gone}
    row["left_out"] = left_out
    for key in ("cannot", "left_out"):
        if not row[key]:
            del row[key]
    if "engines" in row:
        row["engines"] = engines
        row |= comparisons(engines)
    return row
