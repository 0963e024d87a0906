"""The fuzz targets: each takes its seeds and what chance makes of them; for minutes, and by libFuzzer, where asked."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import stressed
import tiny
import tokenizer_made as made
import tokenizer_texts as texts
from compiled import compile_all

from eecompile import contract as c
from eecompile.student.exits import ExitSpec

RUNS = {"json": 4000, "manifest": 1500, "overlay": 1500, "bundle": 400, "tokenizer": 600, "text": 3000}
SECONDS = 60


@pytest.fixture(scope="module")
def seeds(shelf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of inputs for each target."""
    folder = tmp_path_factory.mktemp("seeds")
    for name in RUNS:
        (folder / name).mkdir()
    settings = tiny.config(hidden_size=4, num_attention_heads=2, num_key_value_heads=1, head_dim=2)
    gates: list[Any] = [["learned", "max_prob"], ["entropy"]]
    exits = [
        ExitSpec(layer=layer, adapter="affine", gates=own, gate_units=2 if "learned" in own else 0)
        for layer, own in zip((1, 3), gates, strict=True)
    ]
    tiny.bundle_at(folder / "made", shelf.checkpoint(settings, exits=exits))
    root = tiny.calibrate(folder / "made", [{"learned": 0.3, "max_prob": 0.5}, {"entropy": 0.5}]).files.path
    manifest = (root / c.MANIFEST).read_bytes()
    (folder / "manifest" / "made").write_bytes(manifest)
    (folder / "json" / "object").write_bytes(b'{"a": [1, -2.5e3, "x\\u00e9\\ud83d\\ude00"], "b": {}}')
    (folder / "json" / "numbers").write_bytes(b"[0, -0, 0.5, 1E400, 18446744073709551616, true, null]")
    for path in sorted((root / "overlays").iterdir()):
        text = path.read_text()
        core = text.split('"core": "')[1][:64]
        (folder / "overlay" / path.name).write_text(text.replace(core, "0" * 64))
    names = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p.is_file()]
    folders = sorted({name.rpartition("/")[0] for name in names} - {""})
    lines = [*(f"d {name}" for name in folders), *(f"f {name}" for name in names if name != c.MANIFEST)]
    (folder / "bundle" / "made").write_bytes("\n".join(lines).encode() + b"\n\n" + manifest)
    for name, part in (("nfkc", made.microscope(made.normalizer_parts()["nfkc"])), ("word", made.decoding(None))):
        (folder / "tokenizer" / name).write_text(part.to_str(), encoding="utf-8")
    for number, text in enumerate(texts.texts(3, 40)):
        (folder / "text" / str(number)).write_bytes(text)
    return folder


@pytest.mark.parametrize("target", RUNS)
def test_a_target_lives_through_chance(seeds: Path, tmp_path: Path, target: str) -> None:
    words = [f"-runs={RUNS[target]}", f"-artifact_prefix={tmp_path}/", seeds / target]
    stressed.fuzz(stressed.built("address"), target, *words)


@pytest.mark.slow
@pytest.mark.parametrize("target", RUNS)
def test_a_target_lives_through_a_minute(seeds: Path, tmp_path: Path, target: str) -> None:
    """libFuzzer's, where clang is installed: it looks for inputs that reach what none did before."""
    if compiler := shutil.which("clang++"):
        options = ["-DEECOMPILE_SANITIZE=ON", "-DEECOMPILE_FUZZ=ON", "-DCMAKE_BUILD_TYPE=None"]
        folder = compile_all("cpp-clang", f"-DCMAKE_CXX_COMPILER={compiler}", "-DCMAKE_CXX_FLAGS=-O1 -g1", *options)
    else:
        folder = stressed.built("address")
    found = tmp_path / "found"
    shutil.copytree(seeds / target, found)
    stressed.fuzz(folder, target, f"-max_total_time={SECONDS}", f"-artifact_prefix={tmp_path}/", found)
