"""Steps that decide on the GPU in the C++ runtime, on doubles: the tokens, depths and counts of the host's decisions,
and of the Python runtime."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from doubled import BOLD, COUNT, PROMPTS, add_engines, device_bundle, moving_bundle
from mutated_steps import RULES, SPOILED, compile_mutated
from native_doubles import Doubles, compile_program, copying, signed

from eecompile import contract as c
from eecompile.runtime import Bundle, Sampling
from eecompile.student.exits import ExitSpec

Request = tuple[dict[str, Any], list[str], int]
SAMPLED = Sampling(temperature=0.9, seed=3)
EXACT: dict[str, Any] = {"mode": "exact", "thresholds": BOLD}
LONG, SHORT = (",".join(map(str, prompt)) for prompt in reversed(PROMPTS))
FITTING: list[Request] = [
    (how, [SHORT, LONG, SHORT], COUNT)
    for how in (
        {"mode": "full"}, {"mode": "confident"}, EXACT, {**EXACT, "pending_cap": 2},
        {"mode": "exact", "thresholds": {1: None, 3: {"margin": 0.0}}},
    )
]  # fmt: skip
BETWEEN: list[Request] = [  # sampled requests, and some that are left, between greedy ones
    (EXACT, [f"{SHORT}@0.9", LONG, f"{SHORT}@0.9", SHORT], COUNT),
    (EXACT, [f"{LONG}!", f"{SHORT}@0.9", f"{LONG}!", SHORT], COUNT),
]


def patterns(count: int) -> list[Request]:
    """Drafts of any thresholds, rolled back by the model as they fail, and refilled; of any cap, of any length."""
    dice, bounds = random.Random(11), (0.0, 0.02, 0.3, 0.45, 0.5, 0.55, 0.9)
    found: list[Request] = []
    for _ in range(count):
        thresholds = {
            1: dice.choice([None, {"learned": dice.choice(bounds), "max_prob": dice.choice(bounds)}]),
            3: dice.choice([None, {"margin": dice.choice(bounds)}]),
        }
        prompts = [",".join(str(dice.randrange(41)) for _ in range(dice.randint(1, 30))) for _ in range(2)]
        how = {"mode": "exact", "thresholds": thresholds, "pending_cap": dice.randint(1, 8)}
        found.append((how, prompts, dice.randint(1, COUNT)))
    return found


def line(request: Request) -> str:
    """A request as native/requests.cpp reads it."""
    how, prompts, count = request
    bounds = [
        f"{layer}:{gate}={value!r}" if gate else f"{layer}:never"
        for layer, own in how.get("thresholds", {}).items()
        for gate, value in (own or {"": 0}).items()
    ]
    return f"{how['mode']} {how.get('pending_cap', 8)} {count} {','.join(bounds) or '-'} {';'.join(prompts)}\n"


class Steps:
    """Requests to a bundle whose steps the GPU decides, or the host."""

    def __init__(self, doubles: Doubles, program: Path) -> None:
        self.doubles, self.program = doubles, program

    def start(self, bundle: Path, decision: str, requests: list[Request], **settings: object) -> Any:
        plugin = "" if decision == "pinned" else self.doubles.plugin
        lines = "".join(map(line, requests))
        return self.doubles.start(self.program, bundle, decision, plugin, given=lines, **settings)

    def said(
        self, bundle: Path, decision: str, requests: list[Request], **settings: object
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """What it says, and what the doubles counted; nothing of theirs may be left."""
        report = self.doubles.folder / "report.json"
        report.unlink(missing_ok=True)
        done = self.start(bundle, decision, requests, report=report, **settings)
        assert done.returncode == 0, done.stderr
        counted: dict[str, int] = json.loads(report.read_text())
        assert counted.pop("left") == 0
        return [json.loads(text) for text in done.stdout.splitlines()], counted


@pytest.fixture(scope="session")
def steps(doubles: Doubles, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    library = doubles.command.with_name("libeecompile.a")
    return Steps(doubles, compile_program(tmp_path_factory.mktemp("steps"), library, "requests"))


@pytest.fixture(scope="session")
def mutated(doubles: Doubles, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """The same, of sources in which each of RULES and SPOILED is broken where the environment names it."""
    return Steps(doubles, compile_mutated(tmp_path_factory.mktemp("mutated"), doubles.command.parent))


def without(said: list[dict[str, Any]], decision: str) -> list[dict[str, Any]]:
    """What was said, by that decision, without its name."""
    assert {one.pop("decision") for one in said} == {decision}
    return said


def python_says(bundle: Path, requests: list[Request]) -> list[dict[str, Any]]:
    """What the Python runtime says on the processor."""
    opened, found = Bundle.open(bundle, backend="onnxruntime"), []
    for how, prompts, count in requests:
        session = opened.session(**{**how, "pending_cap": how.get("pending_cap", 8)})
        for prompt in prompts:
            ids, _, temperature = prompt.partition("@")
            sampling = SAMPLED if temperature else Sampling()
            made = session.generate(list(map(int, ids.split(","))), max_new_tokens=count, sampling=sampling, stop=())
            depths, s = [token.exit_layer for token in made], made.stats
            counts = [s.drafted, s.rejected, sum(s.declined.values()), s.segment_passes, s.layer_rows]
            found.append({"ids": made.ids, "depths": depths, "counts": counts, "stopped": s.stop_reason})
    return found


def test_a_step_says_what_the_host_would(built: dict[str, Path], steps: Steps) -> None:
    requests = [*FITTING, *patterns(20), *BETWEEN[:1]]
    by_gpu, counted = steps.said(built["engines"], "conditional", requests)
    by_host, _ = steps.said(built["engines"], "pinned", requests)
    found = without(by_gpu, "conditional")
    assert found == without(by_host, "pinned")
    assert found == python_says(built["plain"], requests)
    assert counted["branches"] > 40
    drafted, rejected, declined = (sum(one["counts"][i] for one in found) for i in range(3))
    assert drafted > rejected > 0 < declined


def test_a_request_that_is_left_leaves_nothing(built: dict[str, Path], steps: Steps) -> None:
    by_gpu, by_host = (steps.said(built["engines"], decision, BETWEEN)[0] for decision in ("conditional", "pinned"))
    assert {one["stopped"] for one in by_gpu} == {"length", "cancelled"}
    assert without(by_gpu, "conditional") == without(by_host, "pinned")


def test_caches_that_are_copied_and_few_graphs(
    built: dict[str, Path], mutated: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest graph goes for a new one, and comes again."""
    copied = copying(Path(shutil.copytree(built["engines"], tmp_path / "copied")))
    plain, counted = mutated.said(copied, "conditional", FITTING)
    assert without(plain, "conditional") == python_says(built["plain"], FITTING)
    monkeypatch.setenv("EECOMPILE_BROKEN", "few graphs")
    few, more = mutated.said(copied, "conditional", FITTING)
    assert without(few, "conditional") == plain
    assert more["cuGraphCreate"] > counted["cuGraphCreate"]


def test_small_heads_and_thresholds_that_move(steps: Steps, tmp_path: Path) -> None:
    bundle, thresholds = moving_bundle(tmp_path)
    requests: list[Request] = [({"mode": "exact", "thresholds": thresholds}, [SHORT, LONG], COUNT)]
    found = without(steps.said(bundle, "conditional", requests)[0], "conditional")
    assert found == python_says(bundle, requests)
    assert all(one["counts"][2] for one in found)


def test_one_launch_a_token(built: dict[str, Path], steps: Steps) -> None:
    counts = [steps.said(built["engines"], "auto", [({"mode": "full"}, [SHORT], n)])[1] for n in (10, 20)]
    assert counts[1]["cuGraphLaunch"] - counts[0]["cuGraphLaunch"] == 10
    assert counts[1]["cuGraphCreate"] == counts[0]["cuGraphCreate"] == 2  # one of them is the capability's trial


def test_threads_share_a_gpu_too(built: dict[str, Path], doubles: Doubles, tmp_path: Path) -> None:
    """Nothing of one slips into what the other captures."""
    program = compile_program(tmp_path, doubles.command.with_name("libeecompile.a"), "threads")
    done = doubles.start(program, built["engines"], 4, doubles.plugin)
    ids = tiny.tokens(Bundle.open(built["plain"]), PROMPTS[0], 8, stop=())
    assert [[int(word) for word in text.split()] for text in done.stdout.splitlines()] == [ids * 2] * 4, done.stderr


UNUSABLE: dict[str, dict[str, object]] = {
    "not allowed in a branch": {"node": "host"},
    "no graph": {"refuse": "cuGraphCreate"},
    "no capture into a graph": {"refuse": "cudaStreamBeginCaptureToGraph"},
    "an old driver": {"branches": "old"},
    "wrong branches": {"branches": "wrong"},
}
WHY = {
    "not allowed in a branch": (1, "CUDA: cuGraphInstantiate failed"),
    "no graph": (1, "CUDA: cuGraphCreate failed"),
    "no capture into a graph": (1, "CUDA: eecompile_condition_capture failed with error 999"),
    "an old driver": (3, "knows no conditional nodes (CUDA error 35)"),
    "wrong branches": (1, "a graph with branches ran wrongly on this GPU: (4, 0, 0)"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_the_gpu_cannot_decide_goes_to_the_host(built: dict[str, Path], steps: Steps, name: str) -> None:
    """Unless it was asked for."""
    settings, bundle, requests = UNUSABLE[name], built["engines"], FITTING[2:3]
    found, counted = steps.said(bundle, "auto", requests, **settings)
    assert without(found, "pinned") == python_says(built["plain"], requests)
    assert counted["cuGraphLaunch"] > COUNT
    done = steps.start(bundle, "conditional", requests, **settings)
    status, message = WHY[name]
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr


REFUSED: dict[str, tuple[list[object], int, str, str]] = {
    "no such decision": (["--decision", "maybe"], 2, "there is no decision maybe", "decisions: auto, pinned"),
    "no library": (["--decision", "conditional"], 3, "there is no plugin library, which sets", "name it with --plugin"),
    "an old library": (
        ["--decision", "conditional", "--plugin", "OLD"], 3, "the plugin library is of an older eecompile", "compile it"
    ),
    "no library at all": (
        ["--decision", "conditional", "--plugin", "TEXT"], 3, "the plugin library cannot be opened: ", "compile it"
    ),
    "another rule": (
        ["--decision", "conditional", "--plugin", "PLUGIN", "--mode", "confident", "--kv", "propagate"], 2,
        "the GPU cannot decide here: the rule for skipped layers is propagate", "use --decision auto",
    ),
    "the processor": (
        ["--decision", "conditional", "--backend", "onnxruntime"], 2,
        "nothing decides on a GPU here: the back end is not tensorrt", "leave out --decision",
    ),
    "a library for the processor": (
        ["--plugin", "PLUGIN", "--backend", "onnxruntime"], 2,
        "engines alone call the exit decision's library, and the back end is onnxruntime", "leave --plugin out",
    ),
    "a library for nothing": (
        ["--decision", "pinned", "--plugin", "PLUGIN"], 2, "call no library of the exit decision", "leave --plugin out"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_who_asks_for_what_is_not_there_hears_why(
    built: dict[str, Path], doubles: Doubles, tmp_path: Path, name: str
) -> None:
    words, status, what, mend = REFUSED[name]
    (tmp_path / "text.so").write_text("no library")
    places = {"OLD": doubles.folder / "libdoubles.so", "TEXT": tmp_path / "text.so", "PLUGIN": doubles.plugin}
    given = [places.get(str(word), word) for word in words]
    done = doubles.run(built["engines"], "--prompt-ids", "1,2,3", "--max-new-tokens", 8, *given)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert what in done.stderr
    assert mend in done.stderr.partition("mend: ")[2]


def test_the_command_takes_a_decision(built: dict[str, Path], doubles: Doubles) -> None:
    words = ["--prompt-ids", SHORT, "--max-new-tokens", 9]
    wanted = tiny.tokens(Bundle.open(built["plain"]), PROMPTS[0], 9)
    for decision in ("conditional", "auto"):
        found, counted = doubles.tokens(built["engines"], *words, "--decision", decision, "--plugin", doubles.plugin)
        assert (found, counted["cuGraphCreate"]) == (wanted, 2)
    found, counted = doubles.tokens(built["engines"], *words, "--decision", "pinned")
    assert (found, "cuGraphCreate" in counted) == (wanted, False)


def test_what_does_not_fit_is_known(steps: Steps, tmp_path: Path) -> None:
    exits = [
        ExitSpec(layer=1, gates=["saturation", "max_prob"]),
        ExitSpec(layer=2, gates=["max_prob"]),
        ExitSpec(layer=3, gates=["patience", "max_prob"]),
    ]
    source = tiny.add_exits(tiny.checkpoint(tmp_path / "checkpoint"), exits)
    bundle = add_engines(device_bundle(tmp_path / "bundle", source, context=96, precision="fp32", cache="fp32"))
    open_ = {1: {"saturation": 0.5, "max_prob": 0.0}, 2: {"max_prob": 0.0}, 3: {"patience": 1.0, "max_prob": 0.0}}

    def heard(*layers: int) -> str:
        thresholds = {layer: open_[layer] if layer in layers else None for layer in open_}
        requests: list[Request] = [({"mode": "exact", "thresholds": thresholds}, [SHORT], 4)]
        done = steps.start(bundle, "conditional", requests)
        if done.returncode == 0:
            return str(json.loads(done.stdout)["decision"])
        assert done.returncode == 2
        assert without(steps.said(bundle, "auto", requests)[0], "pinned") == python_says(bundle, requests)
        return str(done.stderr)

    assert "the exit after layer 1 goes by saturation" in heard(1)
    assert "the exit after layer 2 votes for others" in heard(2, 3)
    assert heard(2) == "conditional"
    manifest = json.loads((bundle / c.MANIFEST).read_text())
    signed(bundle, {**manifest, "minimum_rows": 2})
    assert "the bundle's passes have more rows than wait for them" in heard(2)


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_of_graphs_shows(
    built: dict[str, Path], mutated: Steps, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    monkeypatch.setenv("EECOMPILE_BROKEN", rule)
    done = mutated.start(built["engines"], "conditional", FITTING[2:3])
    assert done.returncode != 0
    assert RULES[rule][-1] in done.stderr


SOME = [*FITTING[2:4], *patterns(6)]


@pytest.fixture(scope="session")
def honest(built: dict[str, Path], mutated: Steps) -> str:
    done = mutated.start(built["engines"], "conditional", SOME)
    assert done.returncode == 0
    return str(done.stdout)


@pytest.mark.parametrize("rule", SPOILED)
def test_a_spoiled_step_says_something_else(
    built: dict[str, Path], mutated: Steps, honest: str, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    monkeypatch.setenv("EECOMPILE_BROKEN", rule)
    done = mutated.start(built["engines"], "conditional", SOME)
    assert "RULE BROKEN" not in done.stderr
    assert done.returncode != 0 or done.stdout != honest
