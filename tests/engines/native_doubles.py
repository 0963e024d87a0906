"""The doubles of libcuda and libnvinfer for the C++ runtime (native/), compiled against the vendor's headers."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiled import DEPS, SOURCES
from toolchain import SOURCES as PLUGIN
from toolchain import compiler, cuda_headers, tensorrt_headers

from eecompile import contract as c
from eecompile.bundle.digest import document_digest, document_layout, file_sha256

NATIVE = Path(__file__).parent / "native"
ONNXRUNTIME = DEPS / "lib" / "libonnxruntime.so.1"
VERSION = "10.16.2.11"
STUBBED = (
    "Runtime", "CudaEngine", "ExecutionContext", "Refitter", "HostMemory", "Tensor", "Layer", "NetworkDefinition",
    "OptimizationProfile", "TimingCache", "BuilderConfig", "Builder",
)  # fmt: skip
COMMON = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations")


@dataclass(frozen=True)
class Doubles:
    """The folder with the libraries, and the command that finds them there."""

    folder: Path
    command: Path

    @property
    def plugin(self) -> Path:
        """The plugin library: its C interface over the double of CUDA."""
        return self.folder / "libeecompile_plugins.so"

    def run(self, bundle: Path, *words: object, **settings: object) -> subprocess.CompletedProcess[str]:
        """eecompile-run on the back end tensorrt; settings are the doubles' (native/doubles.h)."""
        return self.start(self.command, bundle, "--backend", "tensorrt", "--json", *words, **settings)

    def start(self, *command: object, given: str = "", **settings: object) -> subprocess.CompletedProcess[str]:
        """Any command beside the doubles; given: what it reads."""
        all_settings = {"version": VERSION, "onnxruntime": ONNXRUNTIME, **settings}
        said = ",".join(f"{name}={value}" for name, value in all_settings.items())
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self.folder), "EECOMPILE_DOUBLE": said}
        words = [str(word) for word in command]
        return subprocess.run(words, input=given, capture_output=True, text=True, timeout=120, env=environment)

    def tokens(self, bundle: Path, *words: object, **settings: object) -> tuple[list[int], Mapping[str, int]]:
        """What it generates, and what the doubles counted of their calls; nothing of theirs may be left."""
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        done = self.run(bundle, *words, report=report, **settings)
        assert done.returncode == 0, done.stderr
        counted: dict[str, int] = json.loads(report.read_text())
        assert counted.pop("left") == 0
        found: list[int] = json.loads(done.stdout)["token_ids"]
        return found, counted


def compile_doubles(folder: Path, command: Path) -> Doubles:
    """Compile them into `folder`."""
    headers = [f"-isystem{path}" for path in (tensorrt_headers(), cuda_headers(), DEPS / "include")]
    headers += [f"-isystem{DEPS / 'include' / 'onnxruntime'}", f"-I{folder}", f"-I{NATIVE}", f"-I{NATIVE / 'parser'}"]
    (folder / "stubs.h").write_text(stubs((tensorrt_headers() / "NvInferImpl.h").read_text()))
    library = folder / "libdoubles.so"
    sources = [NATIVE / name for name in ("cuda.cpp", "graphs.cpp", "infer.cpp", "builder.cpp")]
    subprocess.run(
        [compiler("g++"), *COMMON, "-O1", "-shared", "-fPIC", *headers, *sources, "-o", library, "-ldl"], check=True
    )
    for name in ("libcuda.so.1", "libnvinfer.so.10", "libnvonnxparser.so.10"):
        (folder / name).symlink_to(library)
    made = Doubles(folder, command)
    sources = [NATIVE / "conditions.cpp", PLUGIN / "conditions.cpp"]
    words = [*headers[1:2], f"-I{PLUGIN}", f"-I{NATIVE}", *sources, "-o", made.plugin, library]
    subprocess.run([compiler("g++"), *COMMON, "-O1", "-shared", "-fPIC", *words], check=True)
    return made


def compile_program(folder: Path, library: Path, name: str, *instead: Path) -> Path:
    """A program of native/ on the C++ runtime's library; `instead`: objects in the place of some of its own."""
    made, tokenizer = folder / name, library.parent / "tokenizer" / "libeecompile_tokenizer.a"
    words = [f"-I{SOURCES / 'include'}", NATIVE / f"{name}.cpp", *instead, library, tokenizer, "-ldl", "-pthread"]
    first = ["-Wl,--allow-multiple-definition"] if instead else []
    subprocess.run([compiler("g++"), *COMMON, "-O1", *first, *words, "-o", made], check=True)
    return made


def stubs(header: str) -> str:
    """For each interface that is doubled, a class whose functions all end the process."""
    found = ["#pragma once", "#pragma GCC system_header", "#include <NvInfer.h>", '#include "doubles.h"']
    found += ["namespace {", "using namespace nvinfer1;"]
    for name in STUBBED:
        body = re.search(rf"class V{name} : public VRoot\s*\{{(.*?)\n\}};", header, re.DOTALL)
        assert body is not None
        lines = re.sub(r"//[^\n]*|TRT_NODISCARD|TRT_DEPRECATED|public:", "", body[1])
        ending = r"\1 override { doubles::broken(__func__); }"
        functions = re.sub(r"virtual\s+([^;{}]*?)\s*=\s*0\s*;", ending, lines)
        found.append(f"struct Stub{name} : apiv::V{name} {{\n{functions}\n}};")
    return "\n".join([*found, "}", ""])


def copying(bundle: Path) -> Path:
    """Have the bundle's plan say that its engines cannot update caches in place, as in the dialect classic."""
    manifest = json.loads((bundle / c.MANIFEST).read_text())
    path = bundle / manifest["device"]["plan"]
    plan = json.loads(path.read_text())
    for graph in plan["graphs"]:
        graph["copied"], graph["in_place"] = {**graph["copied"], **graph["in_place"]}, {}
    path.write_text(json.dumps(plan))
    return signed(bundle, manifest)


def signed(bundle: Path, manifest: dict[str, Any]) -> Path:
    """Write the manifest with its plan's hash and its digest, and the digest into overlays and records."""
    name = manifest["device"]["plan"]
    manifest["files"][name] = {"bytes": (bundle / name).stat().st_size, "sha256": file_sha256(bundle / name)}
    manifest["digest"] = document_digest(manifest)
    (bundle / c.MANIFEST).write_bytes(document_layout(manifest))
    for path in [*(bundle / "overlays").glob("*.json"), *bundle.glob("engines/*/record.json")]:
        document = json.loads(path.read_text())
        document["core"] = manifest["digest"]
        if "digest" in document:
            document["digest"] = document_digest(document)
        path.write_bytes(document_layout(document))
    return bundle


def declarations() -> subprocess.CompletedProcess[str]:
    """What the compiler says of the driver's functions as the runtime declares them, beside the vendor's header."""
    folders = [f"-I{path}" for path in (SOURCES / "src", SOURCES / "include", PLUGIN.parent)]
    command = [compiler("g++"), *COMMON, "-fsyntax-only", f"-isystem{cuda_headers()}", *folders]
    return subprocess.run([*command, NATIVE / "declared.cpp"], capture_output=True, text=True)
