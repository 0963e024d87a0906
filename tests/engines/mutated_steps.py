"""The C++ runtime's steps with rules that can be broken: sources in which something else is done where the environment
names a rule, compiled in the place of the library's own."""

import subprocess
from pathlib import Path

from compiled import DEPS, SOURCES
from native_doubles import COMMON, compile_program
from toolchain import compiler, cuda_headers, tensorrt_headers

_BROKEN = """
#include <cstdlib>
#include <string>
static bool broken(const char* rule) {
  const char* named = std::getenv("EECOMPILE_BROKEN");
  return named != nullptr && std::string(named) == rule;
}
"""
# By rule: the source, what it says there, and what in its place, where BROKEN is whether the rule is to be broken.
Change = tuple[str, str, str]
RULES: dict[str, tuple[Change, str]] = {  # and what is heard of that
    "a section beside the one before": (
        ("branches", "graph_, last_);", "graph_, BROKEN ? nullptr : last_);"), "runs beside what the graph has"
    ),
    "a condition without a branch": (
        ("branches", "if (Status status = fill(root);", "if (BROKEN && !root.condition().ok()) return Status{};\n"
         "  if (Status status = fill(root);"), "a condition without its one branch",
    ),
    "the graph goes first": (
        ("branches", "gpu_->driver().cuGraphExecDestroy(made_);", "if (BROKEN) gpu_->driver().cuGraphDestroy(graph_);\n"
         "  gpu_->driver().cuGraphExecDestroy(made_);"), "a graph goes before its executable",
    ),
    "no run before the capture": (
        ("trt_pass", "    return enqueue(turn, *context_);\n  }\n\n  Status enqueue(",
         "    return BROKEN ? Status{} : enqueue(turn, *context_);\n  }\n\n  Status enqueue("),
        "a capture without a run",
    ),
    "no wait before the capture": (
        ("device_step", "return graphs_.branches->gpu().wait(turn);",
         "return BROKEN ? Status{} : graphs_.branches->gpu().wait(turn);"), "before the run before it was waited for",
    ),
    "nobody waits for the graph": (
        ("device_step", "status;\n  return gpu.wait(turn);\n}\n\nResult<Decisions>",
         "status;\n  return BROKEN ? Status{} : gpu.wait(turn);\n}\n\nResult<Decisions>"),
        "a step ended on the GPU before it was done",
    ),
}  # fmt: skip
SPOILED: dict[str, Change] = {
    "rows stay on the GPU": ("device_step", "if (bytes == 0)", "if (bytes == 0 || BROKEN)"),
    "an older row is asked about": ("device_step", "row_bytes(have - rows,", "row_bytes(BROKEN ? 0 : have - rows,"),
    "waiting rows are overwritten": ("device_step", "row_bytes(waits,", "row_bytes(BROKEN ? 0 : waits,"),
    "other positions": ("device_step", "shape.rows(k), first);", "shape.rows(k), BROKEN ? 0 : first);"),
    "another place in the cache": ("device_step", "starts_[k].data<std::int64_t>() = first;",
                                   "starts_[k].data<std::int64_t>() = BROKEN ? 0 : first;"),
    "a graph for other rows": ("device_step", "return kept.first == shape;",
                               "return BROKEN ? kept.first.exits == shape.exits : kept.first == shape;"),
    "bounds of the step before": ("device_exit", "  head_.set(bounds);", "  if (!BROKEN) head_.set(bounds);"),
    "a head that has not run counts": ("conditional", "*outcome == ExitOutcome::kRefused",
                                       "(!BROKEN && *outcome == ExitOutcome::kRefused)"),
}  # fmt: skip
FEW_GRAPHS: Change = ("device_step", "kept_.size() > kKeptGraphs", "kept_.size() > (BROKEN ? 2 : kKeptGraphs)")


def compile_mutated(folder: Path, built: Path) -> Path:
    """native/requests.cpp on such sources, and on the library in `built`."""
    changes = {name: change for name, (change, _) in RULES.items()} | SPOILED | {"few graphs": FEW_GRAPHS}
    texts = {source: (SOURCES / "src" / f"{source}.cpp").read_text() for source, _, _ in changes.values()}
    for name, (source, honest, changed) in changes.items():
        assert texts[source].count(honest) == 1, name
        texts[source] = texts[source].replace(honest, changed.replace("BROKEN", f'broken("{name}")'))
    path, made = folder / "mutated.cpp", folder / "mutated.o"
    path.write_text("\n".join([_BROKEN, *texts.values()]))
    vendors = [tensorrt_headers(), cuda_headers(), DEPS / "include"]
    folders = [f"-I{SOURCES / name}" for name in ("src", "include")] + [f"-isystem{name}" for name in vendors]
    subprocess.run([compiler("g++"), *COMMON, *folders, "-c", path, "-o", made], check=True)
    return compile_program(folder, built / "libeecompile.a", "requests", made)
