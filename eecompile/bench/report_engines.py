"""The report's section on engines: what was built for which GPUs, how large it is and what a parser found in it."""

from collections.abc import Sequence
from html import escape

from eecompile.bench.markup import section, table, tag
from eecompile.engines.records import EngineRecord, shown_layers

_COLUMNS = ["engine", "MB", "seconds", "peak MB", "layers of the network"]


def engines_section(records: Sequence[EngineRecord], waiting: str | None) -> str:
    """A table for every target that there are engines for. waiting: the target whose engines are yet to be built."""
    lead = "What each engine was built from and for is recorded beside it, and compared before it is loaded."
    if waiting is not None and all(record.target != waiting for record in records):
        lead = f"The engines for {waiting} are built on the device: `eecompile engines BUNDLE`."
    return section("engines", "Engines", lead, "".join(map(_one, records)))


def _one(record: EngineRecord) -> str:
    options = record.options
    kinds = [options.compute, *(["stripped"] if options.stripped else []), *(["refittable"] if options.refit else [])]
    words = (
        f"{record.target}: {record.backend} {record.tensorrt}, SM {', '.join(map(str, record.sm))}, {', '.join(kinds)}"
    )
    rows = [
        [name, f"{e.bytes / 1e6:,.1f}", f"{e.seconds:,.1f}", f"{e.peak / 1e6:,.0f}", shown_layers(e)]
        for name, e in record.engines.items()
    ]
    engines = record.engines.values()
    total = [f"{sum(e.bytes for e in engines) / 1e6:,.1f}", f"{sum(e.seconds for e in engines):,.1f}"]
    most = max((e.peak for e in engines), default=0)
    return tag("h3", escape(words)) + table(_COLUMNS, [*rows, ["all", *total, f"{most / 1e6:,.0f}", ""]])
