"""`bench`: full, confident and exact mode, the uncut graph and peers, alternating over the same prompts."""

import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnxruntime

from eecompile import __version__
from eecompile import contract as c
from eecompile.bench.agreement import agreements
from eecompile.bench.batch import bench_batch
from eecompile.bench.kv import bench_rules
from eecompile.bench.peers import PEERS, PeerSetup
from eecompile.bench.peers.process import PeerProcess
from eecompile.bench.profile import device_name
from eecompile.bench.prompts import prompt_ids
from eecompile.bench.results import BenchResult, BesideResult, Machine, PeerResult, UncutResult
from eecompile.bench.runs import Contender, Ids, ModeContender, PeerFailed, Rounds, UncutContender, alternate
from eecompile.bench.summary import Runs, decoded, equal_tokens, graph_times, mode_result, speed
from eecompile.bench.tables import bench_tables
from eecompile.engines.ort import processors
from eecompile.engines.resident import peak_bytes
from eecompile.errors import Uncalibrated, UsageError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.prompts import Prompt

__all__ = ["bench_tables", "peak_memory_mb", "run_bench"]

Progress = Callable[[str], None]
UNCUT, BESIDE = "uncut", "beside "
PEER_FOLDER = Path("build/peers")
MEMORY_INCLUDES = (
    "Python, the bundle's graphs and a session of every mode with its own cache; not the uncut graph, not the peers"
)


def run_bench(
    bundle: Bundle, prompts: Path | Sequence[Prompt] | None = None, *, max_new_tokens: int = 64, rounds: int = 3,
    peers: Sequence[str] = (), checkpoint: Path | None = None, gguf: Path | None = None, batch: int | None = None,
    kv: bool = False, beside: Bundle | None = None, workdir: Path = PEER_FOLDER,
    progress: Progress = lambda stage: None,
) -> BenchResult:  # fmt: skip
    """Measure the bundle in this process and each peer in one of its own, greedily, end-of-sequence ignored.

    prompts: texts or token ids, a file of them, or None for a few built-in ones. max_new_tokens: of each prompt, at
    least 2. peers: names in PEERS; those that are not installed are reported as skipped. checkpoint: the peers' model
    in Hugging Face form; gguf: llama.cpp's. batch: also run so many sequences
    side by side. kv: also compare the rules for skipped layers. beside: another bundle of the same tokens, its modes in
    the same rounds. workdir: where peers keep what they convert.
    A mode that the bundle refuses (confident without a calibration) is reported as refused.
    Raises UsageError for unknown peers and prompts that cannot be used or do not fit, NumericError.
    """
    _check_request(peers, max_new_tokens, rounds)
    ids = prompt_ids(bundle, prompts)
    contenders, refused = _modes(bundle)
    _warm_up(contenders, ids[0], max_new_tokens, progress)
    memory = peak_memory_mb()
    if bundle.manifest.graphs.reference is not None and bundle.backend == "onnxruntime":
        contenders[UNCUT] = UncutContender(bundle)
        _warm_up({UNCUT: contenders[UNCUT]}, ids[0], max_new_tokens, progress)
    others = {} if beside is None else _beside(bundle, beside)
    _warm_up(others, ids[0], max_new_tokens, progress)
    setup = PeerSetup(
        checkpoint, gguf, bundle.manifest.precision, bundle.threads, bundle.manifest.model.context, workdir
    )
    with ExitStack() as stack:
        if bundle.manifest.source is None:
            started, skipped = _start_peers(peers, setup, stack, ids[0], max_new_tokens, progress)
        else:
            started, skipped = {}, dict.fromkeys(peers, "runs decoder-only models here, not encoder-decoders")
        found = alternate({**contenders, **others, **started}, ids, max_new_tokens, rounds, progress)
    if not decoded(found.runs["full"][0]):
        raise UsageError("the policy's budget ends every request at its first token", mend="raise the budget")
    progress("agreement")
    agreed = agreements(bundle, ids, [run.ids for run in found.runs["full"][0]])
    result = _result(bundle, found, agreed, ids, memory, refused, {**skipped, **found.failed}, started, max_new_tokens)
    run: dict[str, Any] = {"max_new_tokens": max_new_tokens, "rounds": rounds, "progress": progress}
    more: dict[str, Any] = {} if beside is None else {"beside": _beside_results(beside, found, ids)}
    if batch is not None:
        more["batch"] = bench_batch(bundle, ids, list(result.modes), slots=batch, **run)
    if kv:
        more["kv"] = bench_rules(bundle, ids, **run)
    return result.model_copy(update=more)


def peak_memory_mb() -> float:
    """The most memory that was resident in this process so far, 10^6 bytes."""
    return peak_bytes() / 1e6


def _check_request(peers: Sequence[str], tokens: int, rounds: int) -> None:
    unknown = [name for name in peers if name not in PEERS]
    if unknown:
        raise UsageError(f"there is no peer {unknown[0]!r}", mend=f"peers: {', '.join(PEERS)}")
    if tokens < 2 or rounds < 1:
        raise UsageError(
            f"{rounds} rounds of {tokens} tokens measure nothing", mend="one round or more, of two or more"
        )


def _modes(bundle: Bundle) -> tuple[dict[str, Contender], dict[str, str]]:
    """The modes that the bundle runs, and why it refuses the others."""
    contenders: dict[str, Contender] = {}
    refused = {}
    for mode in c.MODES:
        try:
            contenders[mode] = ModeContender(bundle, mode)
        except Uncalibrated as e:
            refused[mode] = e.what
    return contenders, refused


def _beside(bundle: Bundle, other: Bundle) -> dict[str, Contender]:
    """Another bundle's modes, by their names here."""
    if other.manifest.task != c.CAUSAL_LM or other.manifest.model.vocab != bundle.manifest.model.vocab:
        what, where = "the other bundle has other tokens", str(other.files.path)
        raise UsageError(what, where=where, mend="compare bundles of the same model")
    return {f"{BESIDE}{mode}": contender for mode, contender in _modes(other)[0].items()}


def _beside_results(other: Bundle, found: Rounds, prompts: Sequence[Ids]) -> dict[str, BesideResult]:
    full = found.runs["full"]
    agreed = agreements(other, prompts, [run.ids for run in full[0]])
    results = {}
    for mode in c.MODES:
        own, its = found.runs.get(mode), found.runs.get(f"{BESIDE}{mode}")
        if own is None or its is None:
            continue
        measured = speed(its)
        equal, total = agreed[mode] if mode in agreed else equal_tokens(its[0], full[0])
        results[mode] = BesideResult(
            tokens_per_second=measured.tokens_per_second,
            round_seconds=measured.seconds,
            speed_ratio=measured.tokens_per_second / speed(own).tokens_per_second,
            speedup=measured.tokens_per_second / speed(full).tokens_per_second,
            agreement=equal / total,
        )
    return results


def _warm_up(contenders: dict[str, Contender], prompt: Ids, tokens: int, progress: Progress) -> None:
    for name, contender in contenders.items():
        progress(f"warm up {name}")
        contender.run(prompt, tokens)


def _start_peers(
    names: Sequence[str], setup: PeerSetup, stack: ExitStack, prompt: Ids, tokens: int, progress: Progress
) -> tuple[dict[str, PeerProcess], dict[str, str]]:
    """The peers that run, each prepared and warm in a process of its own, and why the others do not."""
    started: dict[str, PeerProcess] = {}
    skipped = {}
    for name in names:
        reason = PEERS[name]().available()
        if reason is None:
            progress(f"prepare {name}")
            try:
                peer = stack.enter_context(PeerProcess(name, setup))
                peer.run(prompt, tokens)
                started[name] = peer
            except PeerFailed as e:
                reason = e.what
        if reason is not None:
            skipped[name] = reason
    return started, skipped


def _result(
    bundle: Bundle, found: Rounds, agreed: dict[str, tuple[int, int]], prompts: Sequence[Ids], memory: float,
    refused: dict[str, str], skipped: dict[str, str], peers: dict[str, PeerProcess], max_new_tokens: int,
) -> BenchResult:  # fmt: skip
    ours = {mode: found.runs[mode] for mode in c.MODES if mode in found.runs}
    full, times = ours["full"], graph_times(ours)
    uncut = found.runs.get(UNCUT)
    return BenchResult(
        eecompile=__version__,
        core=bundle.manifest.digest,
        policy=bundle.files.policy.digest,
        precision=bundle.manifest.precision,
        layers=bundle.manifest.model.layers,
        machine=machine_facts(bundle),
        prompts=len(prompts),
        prompt_tokens=sum(map(len, prompts)),
        max_new_tokens=max_new_tokens,
        rounds=len(full),
        modes={mode: mode_result(bundle, mode, runs, full, times, agreed) for mode, runs in ours.items()},
        refused=refused,
        uncut=None if uncut is None else _uncut_result(uncut, full),
        chain_over_uncut=None if uncut is None else speed(uncut).tokens_per_second / speed(full).tokens_per_second,
        graphs=times,
        peak_memory_mb=memory,
        memory_includes=MEMORY_INCLUDES,
        peers={name: _peer_result(peer, found.runs[name], full) for name, peer in peers.items() if name in found.runs},
        skipped=skipped,
    )


def _uncut_result(runs: Runs, full: Runs) -> UncutResult:
    measured, (equal, _) = speed(runs), equal_tokens(runs[0], full[0])
    return UncutResult(tokens_per_second=measured.tokens_per_second, round_seconds=measured.seconds, equal_tokens=equal)


def _peer_result(peer: PeerProcess, runs: Runs, full: Runs) -> PeerResult:
    measured = speed(runs)
    equal = sum(run.ids == wanted.ids for run, wanted in zip(runs[0], full[0], strict=True))
    return PeerResult(
        tokens_per_second=measured.tokens_per_second,
        round_seconds=measured.seconds,
        speed_ratio=speed(full).tokens_per_second / measured.tokens_per_second,
        tokens_equal=equal == len(runs[0]),
        equal_prompts=equal,
        **peer.facts,
    )


def machine_facts(bundle: Bundle) -> Machine:
    """Where this bundle runs."""
    return Machine(
        device=bundle.graphs.embed.memory.gpu or device_name(),
        processors=processors(),
        threads=bundle.threads,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        onnxruntime=onnxruntime.__version__,
        backend=bundle.backend,
    )
