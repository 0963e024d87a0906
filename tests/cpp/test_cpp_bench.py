"""tools/cpp_bench.py: the C++ runtime beside the Python one on a tiny bundle, and GenAI's loop on a double."""

import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
from click.testing import CliRunner
from scripts import load_script

END = 7
DOUBLE = """
#include <stdlib.h>
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>
/* It counts: each token is one more than the last. After END it is done until it is given more. */
static int32_t ids[64]; static size_t count; static bool done;
void* OgaCreateConfig(const char* path, void** out) { *out = ids; return path[0] ? NULL : ids; }
void* OgaConfigOverlay(void* c, const char* json) { return json[0] == '{' ? NULL : ids; }
void* OgaCreateModelFromConfig(const void* c, void** out) { *out = ids; return NULL; }
void* OgaCreateGeneratorParams(const void* m, void** out) { *out = ids; return NULL; }
void* OgaGeneratorParamsSetSearchNumber(void* p, const char* name, double v) { return NULL; }
void* OgaGeneratorParamsSetSearchBool(void* p, const char* name, bool v) { return v ? ids : NULL; }
void* OgaCreateGenerator(const void* m, const void* p, void** out) { *out = ids; count = 0; done = false; return NULL; }
void* OgaGenerator_AppendTokens(void* g, const int32_t* more, size_t n) {
  for (size_t i = 0; i < n; ++i) ids[count++] = more[i];
  done = false;
  return NULL;
}
size_t OgaGenerator_GetSequenceCount(const void* g, size_t i) { return count; }
void* OgaGenerator_GenerateNextToken(void* g) {
  if (done) abort();
  done = ids[count - 1] + 1 == 7;
  if (!done) { ids[count] = ids[count - 1] + 1; ++count; }
  return NULL;
}
bool OgaGenerator_IsDone(const void* g) { return done; }
const int32_t* OgaGenerator_GetSequenceData(const void* g, size_t i) { return ids; }
const char* OgaResultGetError(const void* r) { return "it says so"; }
void OgaDestroyGenerator(void* g) {}
void OgaDestroyGeneratorParams(void* p) {}
void OgaDestroyModel(void* m) {}
void OgaDestroyConfig(void* c) {}
void OgaShutdown(void) {}
"""


@pytest.fixture(scope="module")
def cpp_bench() -> ModuleType:
    return load_script("cpp_bench")


def test_both_runtimes_are_measured_in_turns(
    shelf: Any, command: Path, cpp_bench: ModuleType, tmp_path: Path
) -> None:  # fmt: skip
    source = shelf.checkpoint(tiny.config(max_position_embeddings=96), gain=6.0)
    bundle = tiny.bundle_at(tmp_path / "bundle", source, [1, 3])
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt_ids": [3, 5, 8]}\n{"prompt_ids": [13, 21]}\n')
    words = [str(bundle), "--commands", str(command.parent), "--prompts", str(prompts), "--modes", "full,exact"]
    done = CliRunner().invoke(cpp_bench.main, [*words, "--tokens", "6", "--rounds", "1"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [mode["mode"] for mode in found["beside_python"]] == ["full", "exact"]
    for mode in found["beside_python"]:
        assert mode["equal_outputs"] == "2 of 2"
        assert mode["ratio"] == pytest.approx(mode["tokens_per_second"][0] / mode["tokens_per_second"][1])
    assert found["start"]["seconds"] > found["start"]["engines_load_seconds"] > 0
    refused = CliRunner().invoke(cpp_bench.main, [*words, "--tokens", "0"])
    assert (refused.exit_code, "a command failed" in refused.output) == (1, True)


def test_a_median_is_of_ratios_of_rounds(cpp_bench: ModuleType) -> None:
    found = cpp_bench.summary([(10.0, 5.0), (30.0, 10.0), (8.0, 8.0)])
    assert found == {"tokens_per_second": [10.0, 8.0], "ratio": 2.0, "ratios": [1.0, 2.0, 3.0]}
    lines = [{"token_ids": [1] * n, "stats": {"tokens_per_second": rate}} for n, rate in ((11, 10.0), (31, 30.0))]
    assert cpp_bench.speed(lines) == pytest.approx(20.0)  # 40 tokens in two seconds


def test_genais_loop_goes_on_after_an_end(cpp_bench: ModuleType, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    (tmp_path / "double.c").write_text(DOUBLE)
    (tmp_path / "prompts.txt").write_text("2 4\n3\n\n")
    library = tmp_path / "double.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", tmp_path / "double.c", "-o", library], check=True)
    loop = cpp_bench.compile_loop(tmp_path)
    words = [loop, library, "folder", tmp_path / "prompts.txt", "5", "2", "1", str(END)]
    found = json.loads(cpp_bench.output_of([str(word) for word in words]))
    assert found["token_ids"] == [[5, 6, 7, 8, 9], [4, 5, 6, 7, 8]]
    assert [len(rates) for rates in found["tokens_per_second"]] == [2, 2]
    bad = subprocess.run([loop, library, "", *map(str, words[3:])], capture_output=True, text=True)
    assert (bad.returncode, bad.stderr) == (1, "error it says so\n")
