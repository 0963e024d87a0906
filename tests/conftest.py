"""What every test shares: deterministic property tests, a shelf of tiny bundles, and slow tests on request only."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import tiny

from eecompile.runtime import Bundle
from eecompile.shapes import HeadShape
from eecompile.student.exits import ExitSpec
from eecompile.student.loops import Loops

hypothesis.settings.register_profile(
    "eecompile",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("eecompile")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run only where the marker expression names them."""
    if "slow" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with -m slow"))


class Shelf:
    """Tiny bundles by what they were built from, each built and opened once a session. Nobody may change them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._opened: dict[str, Bundle] = {}

    def checkpoint(
        self, settings: tiny.Config | None = None, exits: Sequence[ExitSpec] = (),
        heads: Sequence[HeadShape] = (), loops: Loops | None = None, **options: Any,
    ) -> Path:  # fmt: skip
        """The checkpoint of `settings` with exits `exits`, its layers in `loops`; options as tiny.checkpoint's."""
        shapes = [part.model_dump() for part in (*exits, *heads)]
        key = json.dumps([settings, shapes, loops and loops.model_dump(), options], sort_keys=True)
        path = self._root / f"checkpoint-{tiny.digest(key)}"
        if not path.exists():
            tiny.checkpoint(path, settings, **options)
            if exits or loops:
                tiny.add_exits(path, exits, heads=heads, loops=loops, gain=options.get("gain", 1.0))
        return path

    def bundle(
        self, settings: tiny.Config | None = None, at: Sequence[int] = (), *, exits: Sequence[ExitSpec] = (),
        heads: Sequence[HeadShape] = (), loops: Loops | None = None, precision: str = "fp32",
        context: int | None = None, minimum_rows: int = 1, slots: int = 1, build: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Bundle:  # fmt: skip
        """The open bundle of that checkpoint; `at` declares plain exits in place of `exits`, `build`
        are more of BuildOptions."""
        source = self.checkpoint(settings, exits, heads, loops, **options)
        chosen = {"precision": precision, "context": context, "minimum_rows": minimum_rows, "slots": slots}
        chosen |= build or {}
        key = json.dumps([source.name, list(at), chosen])
        if key not in self._opened:
            self._opened[key] = tiny.open_bundle(self._root / f"bundle-{tiny.digest(key)}", source, at, **chosen)
        return self._opened[key]


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """The session's tiny bundles."""
    return Shelf(tmp_path_factory.mktemp("shelf"))
