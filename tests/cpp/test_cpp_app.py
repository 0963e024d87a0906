"""What an application gets: the bundle's own sources, the package that they install, a sample, and eecompile-bench."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_encoder as te
from commands import cli
from compiled import DEPS

import eecompile
from eecompile import contract as c
from eecompile.runtime import Bundle

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples" / "03_cpp_app"
GAIN = 0.35


def commands() -> list[str]:
    """The sample's commands, in order."""
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    return [line for block in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) for line in block.splitlines()]


def run(words: str | list[str], place: Path, status: int = 0) -> tuple[str, str]:
    """What a command in `place` says to stdout and stderr, line ends and all; by a shell if it is one line."""
    done = subprocess.run(words, cwd=place, shell=isinstance(words, str), capture_output=True, timeout=900)
    said, noted = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == status, (words, said[-3000:], noted[-3000:])
    return said, noted


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which a tiny bundle, the samples and what CMake needs are where the sample's commands look."""
    root = tmp_path_factory.mktemp("app")
    settings = tiny.config(vocab_size=tiny.TOKENIZER_IDS, max_position_embeddings=96)
    source = tiny.add_tokenizer(tiny.checkpoint(root / "checkpoint", settings, gain=GAIN))
    cli("build", source, "--exits", "1,3", "-o", root / "build/bundle", "--no-profile")
    (root / "samples").symlink_to(ROOT / "samples")
    if DEPS.exists():
        (root / "build/deps").symlink_to(DEPS)
    return root


def is_build(command: str) -> bool:
    """Whether a command compiles the whole library."""
    return command.startswith(("cmake -S build/bundle/runtime", "cmake --build build/runtime"))


def of_compiled(command: str, folder: Path) -> str:
    """A command on what `folder` has in the place of build/runtime."""
    return re.sub(r"(?<![\w/])build/runtime", shlex.quote(str(folder)), command)


def check_sample(place: Path, said: dict[str, str]) -> None:
    """The answers of the sample's commands are the Python runtime's."""
    opened = Bundle.open(place / "build/bundle")
    answer = opened.session().chat([{"role": "user", "content": "Name a prime."}])
    text = "".join(token.text for token in answer)
    (ran,) = [out for command, out in said.items() if "eecompile-run" in command]
    (app,) = [out for command, out in said.items() if command.startswith("build/cpp_app/cpp_app")]
    (measured,) = [out for command, out in said.items() if "eecompile-bench" in command]
    assert text.startswith(ran.removesuffix("\n"))
    assert ran.strip()
    shown, speed = app.removesuffix("\n").rsplit("\n", 1)
    assert shown.startswith(text)
    assert re.fullmatch(r"[0-9.]+ tokens/s", speed)
    assert [mode["mode"] for mode in json.loads(measured)["modes"]] == ["full", "exact"]


def test_the_bundles_sources_are_whole(place: Path, command: Path) -> None:
    """CMake finds every file that they name, whatever of the project is not there; compiling them is the slow test."""
    first = next(line for line in commands() if is_build(line))
    run(first.replace("-B build/runtime", "-B build/configured"), place)


def test_the_samples_commands(place: Path, command: Path) -> None:
    """All but the library's own compilation, which the tests have done already."""
    said = {}
    for line in commands():
        if not is_build(line):
            said[line] = run(of_compiled(line, command.parent), place)[0]
    check_sample(place, said)
    package = place / "build/installed"
    assert (package / "bin/eecompile-run").exists()
    (version,) = package.rglob("eecompileConfigVersion.cmake")
    assert f'"{eecompile.__version__}"' in version.read_text()


C_PROGRAM = r"""
#include <eecompile.h>
int main(void) {
  eecompile_open_options options = {.size = sizeof options, .threads = 1};
  eecompile_bundle* bundle = 0;
  int32_t code = eecompile_open("/nowhere", &options, &bundle);
  return eecompile_abi() == EECOMPILE_ABI && code == EECOMPILE_INTEGRITY ? 0 : 1;
}
"""
C_PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(c_app LANGUAGES C CXX)
find_package(eecompile 0.1 REQUIRED)
add_executable(c_app main.c)
target_link_libraries(c_app PRIVATE eecompile::c)
target_compile_options(c_app PRIVATE -std=c99 -Wall -Wextra -Wpedantic -Werror)
"""


def test_a_program_in_c_finds_the_package(place: Path, tmp_path: Path, command: Path) -> None:
    run(["cmake", "--install", str(command.parent), "--prefix", str(tmp_path / "prefix")], tmp_path)
    (tmp_path / "main.c").write_text(C_PROGRAM)
    (tmp_path / "CMakeLists.txt").write_text(C_PROJECT)
    run(["cmake", "-S", ".", "-B", "out", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"], tmp_path)
    run(["cmake", "--build", "out"], tmp_path)
    run(["out/c_app"], tmp_path)
    (tmp_path / "CMakeLists.txt").write_text(C_PROJECT.replace("0.1", "2.0"))
    _, noted = run(["cmake", "-S", ".", "-B", "new", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"], tmp_path, status=1)
    assert "compatible with requested version" in noted


@pytest.mark.slow
def test_the_sample_as_it_is_written(place: Path) -> None:
    """From a bundle alone, where nothing was compiled before."""
    if shutil.which("cmake") is None or not DEPS.exists():
        pytest.skip("cmake or build/deps is not there")
    check_sample(place, {line: run(line, place)[0] for line in commands()})


# -- eecompile-bench ----------------------------------------------------------------------------------------------


def bench(command: Path, *words: object) -> subprocess.CompletedProcess[str]:
    program = command.parent / "eecompile-bench"
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=300)


def test_bench_measures_the_modes_in_turns(shelf: Any, command: Path, tmp_path: Path) -> None:
    source = shelf.checkpoint(tiny.config(max_position_embeddings=96), gain=GAIN)
    path = tiny.bundle_at(tmp_path / "bundle", source, [1, 3])
    tiny.calibrate(path, [{"max_prob": 0.04}] * 2)
    done = bench(command, path, "--tokens", 12, "--rounds", 3, "--prompt-length", 7)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    opened = Bundle.open(path)
    prompt = [(i * 7919 + 11) % tiny.VOCAB for i in range(7)]
    assert (found["backend"], found["gpu"]) == ("onnxruntime", None)
    assert (found["prompt_tokens"], [mode["mode"] for mode in found["modes"]]) == (7, list(c.MODES))
    for mode in found["modes"]:
        generation = opened.session(mode=mode["mode"]).generate(prompt, max_new_tokens=12, stop=[])
        assert len(list(generation)) == mode["tokens"] == 12
        assert mode["mean_depth"] == pytest.approx(generation.stats.mean_depth)
        assert len(mode["rounds"]) == 3
        assert mode["tokens_per_second"] == sorted(mode["rounds"])[1] > 0
        assert 0 < mode["outside_engines"] < 1
        assert mode["prefill_seconds"] > 0
    start = found["start"]
    parts = ("files_seconds", "session_seconds", "first_token_seconds")
    assert start["beyond_load_seconds"] == pytest.approx(sum(start[part] for part in parts))
    assert start["seconds"] == pytest.approx(start["beyond_load_seconds"] + start["engines_load_seconds"])
    assert min(start.values()) > 0


def test_bench_takes_a_text_and_says_what_it_cannot_do(command: Path, place: Path) -> None:
    path = place / "build/bundle"
    opened = Bundle.open(path)
    assert opened.text is not None
    chat = len(opened.text.encode_chat([{"role": "user", "content": "Hi the"}]))
    few = ["--tokens", 2, "--rounds", 1, "--modes", "exact"]
    for words, count in (([], chat), (["--raw"], len(opened.text.encode("Hi the")))):
        done = bench(command, path, "--prompt", "Hi the", *words, *few)
        assert json.loads(done.stdout)["prompt_tokens"] == count
    for words, status, why in (
        (["--modes", "confident"], 2, "calibrat"),
        (["--modes", "fast"], 2, "there is no mode fast"),
        (["--tokens", "1"], 2, "nothing to measure"),
        (["--rounds", "none"], 2, "--rounds"),
        (["--rounds"], 2, "--rounds"),
        (["--prompt-length", "200"], 2, "do not fit the context"),
        (["--faster"], 2, "there is no option --faster"),
        (["--backend", "cuda"], 3, "CUDA"),
        (["--backend", "fast"], 2, "there is no back end fast"),
        (["--onnxruntime", "/nowhere.so"], 3, "ONNX Runtime cannot be loaded"),
    ):
        done = bench(command, path, *words)
        assert (done.returncode, done.stdout) == (status, "")
        assert why in done.stderr
    assert bench(command).returncode == 2
    assert "eecompile-bench BUNDLE" in bench(command, "--help").stdout


def test_bench_does_not_measure_classifiers(command: Path, tmp_path: Path) -> None:
    source = te.checkpoint(tmp_path / "checkpoint", te.config("bert", "tokens"))
    done = bench(command, te.open_bundle(tmp_path / "bundle", source).files.path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "classifies texts" in done.stderr
