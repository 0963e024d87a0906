"""The plugin library against 10.14's headers, beside doubles of libnvinfer and of the launch (plugin_host.cpp)."""

import re
import subprocess
from pathlib import Path

import pytest
from toolchain import CAPABILITIES, SOURCES, compiler, cuda_headers, tensorrt_headers

from eecompile import contract as c
from eecompile.plugins.conditions import _ARGUMENTS
from eecompile.plugins.library import LIBRARY

HERE = Path(__file__).parent
STRICT = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"]
SCENARIOS = re.findall(r'\{"(\w+)", \w+\}', (HERE / "plugin_host.cpp").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the host program, the plugin library and the double of libnvinfer.so.10."""
    made = tmp_path_factory.mktemp("plugin")
    system = ["-isystem", cuda_headers(), "-isystem", tensorrt_headers()]
    base = [compiler("g++"), *STRICT, *system, f"-I{SOURCES}", f"-I{HERE}", f"-I{HERE / 'doubles'}"]
    shared = ["-shared", "-fvisibility=hidden", "-Wl,-z,nodelete"]
    library = [SOURCES / "plugin.cpp", SOURCES / "library.cpp", HERE / "doubles/kernel.cpp"]
    double = ["-shared", "-Wl,-soname,libnvinfer.so.10", "-Wno-deprecated-declarations", HERE / "doubles/nvinfer.cpp"]
    runs = [
        subprocess.Popen([*base, *sources, "-o", made / name, "-ldl"])
        for name, sources in {
            LIBRARY: [*shared, *library],
            "libnvinfer.so.10": double,
            "plugin_host": [HERE / "plugin_host.cpp"],
        }.items()
    ]
    assert [run.wait() for run in runs] == [0, 0, 0]
    return made


def scenario(folder: Path, name: str) -> str:
    """What a scenario prints; fails where one of its expectations did."""
    done = subprocess.run([folder / "plugin_host", folder, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_every_scenario_is_run() -> None:
    assert len(SCENARIOS) == 11


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in ("refusals", "both")])
def test_as_tensorrt_uses_it(folder: Path, name: str) -> None:
    scenario(folder, name)


def test_opened_and_loaded_it_is_refused_and_stays(folder: Path) -> None:
    assert scenario(folder, "both") == f"error: {c.DECISION_OP} is registered twice\n"


def test_what_does_not_fit_is_refused_with_its_reason(folder: Path) -> None:
    """Wherever TensorRT tells shapes: at configuration, at a change of shape and at each run."""
    cases = scenario(folder, "refusals").split("wanted: ")[1:]
    assert len(cases) >= 15
    for wanted, *said in (case.strip().split("\n") for case in cases):
        assert len(said) == (0 if wanted == "nothing" else 3)
        assert all(line.startswith(f"error: {c.DECISION_OP}: ") and wanted in line for line in said)


def test_the_contract_is_the_sources() -> None:
    text = (SOURCES / "plugin.cpp").read_text()
    assert f'kName[] = "{c.DECISION_OP}", kVersion[] = "{c.DECISION_VERSION}", kNamespace[] = ""' in text


def test_cmake_makes_a_library_that_exports_its_functions_alone(tmp_path: Path) -> None:
    """The whole of it, kernels of one GPU, with nothing of TensorRT but headers."""
    options = [f"-DTENSORRT_INCLUDE={tensorrt_headers()}", "-DCMAKE_CUDA_ARCHITECTURES=80-real"]
    compiler("nvcc")
    subprocess.run([compiler("cmake"), "-S", SOURCES, "-B", tmp_path, *options], check=True, capture_output=True)
    subprocess.run([compiler("cmake"), "--build", tmp_path], check=True, capture_output=True)
    symbols = subprocess.run(
        [compiler("nm"), "-D", "--defined-only", tmp_path / LIBRARY], check=True, capture_output=True, text=True
    )
    assert sorted(line.split()[2] for line in symbols.stdout.splitlines() if " T " in line) == [
        *(f"eecompile_condition_{name}" for name in sorted(_ARGUMENTS)),
        "getCreators",
        "setLoggerFinder",
    ]


def test_cmake_knows_every_capability() -> None:
    listed = re.findall(r"(\d+)-real", (SOURCES / "CMakeLists.txt").read_text())
    assert tuple(sorted(map(int, listed))) == CAPABILITIES
