"""Finding the plugin library and getting it into TensorRT's registry: by opening it, or by its loadLibrary."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eecompile import contract as c
from eecompile.errors import MissingBackend
from eecompile.plugins import library
from eecompile.plugins.library import LIBRARY, PluginLibrary, find_library, load_library


class Registry:
    """TensorRT's: `load_library` refuses what opening has registered already. `opening`, `loading`: what registers."""

    def __init__(self, *, opening: bool, loading: bool) -> None:
        self.opening, self.loading = opening, loading
        self.known = False
        self.calls: list[str] = []

    def get_creator(self, name: str, version: str, plugin_namespace: str) -> object | None:
        assert (name, version, plugin_namespace) == (c.DECISION_OP, "1", "")
        return object() if self.known else None

    def open(self, path: str) -> None:
        self.calls.append("open")
        self.known = self.opening

    def load_library(self, path: str) -> object | None:
        assert not self.known, "it is registered: TensorRT fails, and closes the library"
        self.calls.append("load")
        self.known = self.loading
        return object() if self.loading else None


def load(registry: Registry, dlopen: Any = None) -> None:
    trt = SimpleNamespace(__version__="10.3.0", get_plugin_registry=lambda: registry)
    load_library(trt, PluginLibrary(Path("/lib.so"), "0" * 64), dlopen or registry.open)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(library, "_BUILT", tmp_path / "built")
    return tmp_path / "built"


def test_a_built_library_is_found_with_its_hash(built: Path) -> None:
    assert find_library() is None
    built.mkdir()
    (built / LIBRARY).write_bytes(b"plugin")
    found = find_library()
    assert found == PluginLibrary((built / LIBRARY).resolve(), hashlib.sha256(b"plugin").hexdigest())
    assert find_library(built) == find_library(built / LIBRARY) == found


def test_a_named_library_has_to_be_there(built: Path, tmp_path: Path) -> None:
    for given in (tmp_path / "nowhere.so", tmp_path):
        with pytest.raises(MissingBackend, match="no plugin library") as caught:
            find_library(given)
        assert caught.value.exit_status == 3


@pytest.mark.parametrize(("opening", "calls"), [(True, ["open"]), (False, ["open", "load"])])
def test_opened_or_loaded_but_never_both(opening: bool, calls: list[str]) -> None:
    registry = Registry(opening=opening, loading=True)
    load(registry)
    load(registry)
    assert registry.calls == calls


def test_a_library_for_another_tensorrt_is_refused() -> None:
    with pytest.raises(MissingBackend, match=r"TensorRT 10\.3\.0 does not take"):
        load(Registry(opening=False, loading=False))


def test_a_library_that_does_not_open_is_refused() -> None:
    def dlopen(path: str) -> None:
        raise OSError("no such file")

    with pytest.raises(MissingBackend, match="cannot be opened"):
        load(Registry(opening=True, loading=True), dlopen)
