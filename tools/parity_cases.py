"""What both runtimes are compared on: bundles of every kind, and the runs of each (parity_runs.py)."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import tiny_encoder
import tiny_kinds as kinds
import tiny_t5
from parity_requests import Ask, classifier_runs, decoder_runs, random_ids
from parity_runs import Prompt, Run

from eecompile.runtime import Bundle
from eecompile.shapes import Adaptive, Decay, HeadShape, PredictorShape, RouterShape
from eecompile.student.cycles import CycleSpec
from eecompile.student.exits import EarlyExit, ExitSpec, save_exits
from eecompile.student.loops import Loops

PRECISIONS = tiny.PRECISIONS
TWICE = ("fp32", "int8", "int4", "fp16", "int8", "fp32", "fp16", "int4")  # for two bundles of each kind
TINY, SMOLLM2, RAMPART = "tiny decoders", "SmolLM2", "Rampart"
TEXTS = [
    "What is the capital of France?", "Write a short poem about the sea, in rhyme.",
    "def fibonacci(n):\n    \"\"\"The n-th Fibonacci number.\"\"\"\n",
    "Ein Zug fährt um 8 Uhr ab und braucht 3½ Stunden. Wann kommt er an? 🚂",
    "Once upon a time there was a mouse who lived under a library and read at night. " * 6,
    "Name three primes.", "List the planets: Mercury, Venus,", "2 + 2 =",
]  # fmt: skip
MAILS = [
    "Hello Bob, please call me back at +44 20 7946 0958 or write to jane.doe@example.org before Monday.",
    "My address is 12 Mill Lane, Leeds LS1 4DT, and my account number 12345678.", "Thanks!",
    "The meeting with Dr. Élodie Martin was moved to 3 March 2025, 14:30, in room 5 of the Berlin office. " * 4,
    "SSN 078-05-1120, card 4111 1111 1111 1111, expires 09/27.", "No names here, only a sentence about the weather.",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Bundles of one kind. make: writes them into a folder and gives the runs, whose prompts go by the seed."""

    name: str
    make: Callable[[Path, int], Iterable[Run]]


# -- tiny random models -------------------------------------------------------------------------------------------


def tiny_cases() -> list[Case]:
    """Every family, kind of exit, rule and precision on tiny random models."""
    turn = cycle(PRECISIONS)
    found = [
        _tiny(f"family {name}", next(turn), {"settings": settings, "build": kinds.RULES}, few=True)
        for name, settings in tiny.variants().items()
    ]
    turn = cycle(TWICE)
    made = {f"exits {name}": how for name, how in kinds.KINDS.items()}
    made |= {f"rules {name}": how for name, how in kinds.MODELS.items()}
    made["cyclic gates"] = {"source": kinds.cyclic_checkpoint}
    for name, how in made.items():
        found += [_tiny(name, next(turn), how), _tiny(f"{name} side by side", next(turn), how, slots=3)]
    found += [
        Case(f"tiny source {name} {precision}", partial(_source, settings, precision))
        for name, settings in tiny_t5.variants().items()
        for precision in (("fp32", "fp16") if name == "mt5" else (next(turn), next(turn)))  # its heads: 16 wide in all
    ]
    turn = cycle(PRECISIONS)
    found += [
        Case(f"tiny encoder {name} {precision}", partial(_encoder, settings, precision))
        for name, settings in tiny_encoder.variants().items()
        for precision in (PRECISIONS if name in ("bert-tokens", "bert-sequence") else [next(turn)])
    ]
    return found


def _tiny(name: str, precision: str, made: Mapping[str, Any], slots: int = 1, *, few: bool = False) -> Case:
    return Case(f"tiny {name} {precision}", partial(_decoder, made, precision, slots, few))


def _decoder(made: Mapping[str, Any], precision: str, slots: int, few: bool, root: Path, seed: int) -> Iterator[Run]:
    exits, loops = made.get("exits", ()), made.get("loops")
    if "source" in made:
        source = made["source"](root / "checkpoint")
    else:
        source = tiny.checkpoint(root / "checkpoint", made.get("settings"), gain=kinds.GAIN)
    if exits or loops:
        tiny.add_exits(source, exits, heads=kinds.heads_of(exits), loops=loops, gain=kinds.GAIN)
    options = {"minimum_rows": made.get("minimum_rows", 1), "slots": slots, **made.get("build", {})}
    at = [] if exits else [2] if "source" in made else [1, 2, 3]
    path = tiny.bundle_at(root / "bundle", source, at, precision=precision, **options)
    prompts: list[Prompt] = [random_ids(seed * 100 + i, n) for i, n in enumerate((140, 3, 9, 1, 60))]
    return decoder_runs(path, Ask(TINY, prompts, random_ids(7, 100)["prompt_ids"], 40, few=few))


def _source(settings: tiny.Config, precision: str, root: Path, seed: int) -> Iterator[Run]:
    path = tiny.bundle_at(
        root / "bundle", tiny.checkpoint(root / "checkpoint", settings, gain=3.0), [1, 3], precision=precision
    )
    prompts: list[Prompt] = [random_ids(seed * 100 + i, n) for i, n in enumerate((17, 1, 90, 16))]
    ask = Ask(
        "tiny encoder-decoders", prompts, random_ids(7, 60)["prompt_ids"], 30, source=random_ids(8, 30)["prompt_ids"]
    )
    return decoder_runs(path, ask)


def _encoder(settings: tiny.Config, precision: str, root: Path, seed: int) -> Iterator[Run]:
    source = tiny_encoder.add_tokenizer(tiny_encoder.checkpoint(root / "checkpoint", settings, gain=0.3))
    opened = tiny_encoder.open_bundle(root / "bundle", source, [1, 2, 3], precision=precision)
    rng, words = np.random.default_rng(seed), [*tiny_encoder.TEXT.upper().split(), "dogs", "unheard", "é", "Ünï"]
    prompts: list[Prompt] = []
    for number in range(12):
        one, other = (" ".join(rng.choice(words, rng.integers(0, 14))) for _ in range(2))
        texts = {"text": one, "pair": other} if number % 3 == 2 else {"text": one}
        prompts.append(random_ids(int(rng.integers(99)), int(rng.integers(1, 70)), 96) if number % 3 == 0 else texts)
    return classifier_runs(opened, root, "tiny encoders", prompts, (5,))


# -- real models --------------------------------------------------------------------------------------------------


def real_cases(smollm2: Path | None, rampart: Path | None, bundles: Iterable[Path]) -> list[Case]:
    """SmolLM2 with random exits of every kind, Rampart, and bundles as they are."""
    found: list[Case] = []
    if smollm2 is not None:
        for name, (student, precision, options) in SMOLLM2_KINDS.items():
            make = partial(_smollm2, smollm2, student, precision, options)
            found.append(Case(f"SmolLM2 {name} {precision}", make))
    if rampart is not None:
        found += [Case(f"Rampart {p}", partial(_rampart, rampart, p)) for p in PRECISIONS]
    return found + [Case(f"bundle {path.parent.name}/{path.name}", partial(_given, path)) for path in bundles]


FEW = HeadShape(name="few", kind="shortlist", tokens=list(range(2048)))
THIN = HeadShape(name="thin", kind="low_rank", rank=64)
ROUTER, PREDICTOR = RouterShape(choices=4, units=16), PredictorShape(head="few", units=32)
DECAY, ADAPTIVE = Decay(kind="decay", tokens=16), Adaptive(kind="adaptive", low=0.02, high=0.4)


def _exits(*made: Mapping[str, Any], at: Iterable[int] = (14, 20, 26)) -> dict[str, Any]:
    exits = [ExitSpec(layer=layer, **one) for layer, one in zip(at, made, strict=True)]
    names = {name for e in exits for name in (e.head, e.predictor.head if e.predictor else "")}
    return {"exits": exits, "heads": [head for head in (FEW, THIN) if head.name in names]}


def _gated(*gates: str, **more: Any) -> dict[str, Any]:
    return {"gates": list(gates), "gate_units": 8 * ("learned" in gates), **more}


PROBABILITIES = _exits(_gated("margin"), _gated("entropy"), _gated("max_prob"))
WALKED = _exits(_gated("saturation"), _gated("learned"), _gated("patience"))
CHOSEN = _exits(
    _gated("router", router=ROUTER, head="thin"), _gated("predictor", predictor=PREDICTOR, head="few"), _gated("router")
)
MOVED = _exits(
    _gated("max_prob", head="few", schedule=DECAY), _gated("margin", head="thin", schedule=ADAPTIVE),
    _gated("learned", "max_prob", "entropy", schedule=DECAY),
)  # fmt: skip
MODULES = _exits(
    _gated("max_prob", adapter="mlp"), _gated("margin", adapter="layer"), _gated("max_prob", adapter="affine")
)
LOOPS = Loops(prelude=12, block=4, loops=2, rank=4, projections=["q", "k", "down"])
LOOPED = {**_exits(_gated("max_prob"), _gated("margin"), _gated("entropy"), at=(16, 20, 30)), "loops": LOOPS}
CYCLIC = {
    **_exits(_gated("max_prob"), _gated("saturation"), _gated("max_prob")),
    "cycles": [CycleSpec(first=14, layer=16, repeats=2)],
}
SMOLLM2_KINDS: Mapping[str, tuple[Mapping[str, Any], str, Mapping[str, Any]]] = {
    "probabilities": (PROBABILITIES, "int4", kinds.RULES),
    "walked": (WALKED, "fp16", {}),
    "chosen": (CHOSEN, "int8", {}),
    "moved": (MOVED, "fp32", {}),
    "side by side": (MOVED, "int4", {**kinds.RULES, "slots": 4}),
    "modules": (MODULES, "int4", {}),
    "looped": (LOOPED, "int8", kinds.SELECTED),
    "cyclic": (CYCLIC, "fp16", {}),
    "8-bit caches": (PROBABILITIES, "fp32", {**kinds.RULES, "cache": "int8"}),
    "16-bit caches": (WALKED, "int4", {**kinds.RULES, "cache": "fp16"}),
}  # fmt: skip


def _smollm2(
    checkpoint: Path, student: Mapping[str, Any], precision: str, options: Mapping[str, Any], root: Path, seed: int
) -> Iterator[Run]:  # fmt: skip
    source = root / "student"
    shutil.copytree(checkpoint, source, copy_function=os.link)
    parts = student["exits"], student["heads"]
    loops, cycles = student.get("loops"), student.get("cycles", [])
    tensors = tiny.exit_tensors(source, parts[0], heads=parts[1]) | tiny.factor_tensors(source, loops, gain=0.02)
    rng = np.random.default_rng(1)
    for name, shape in (pair for one in cycles for pair in one.shapes(576).items()):
        tensors[name] = (0.02 * rng.standard_normal(shape)).astype(np.float32)
    save_exits(source, EarlyExit(exits=parts[0], heads=parts[1], schedule=loops, cycles=cycles), tensors)
    path = tiny.bundle_at(root / "bundle", source, context=512, precision=precision, **options)
    return _texts(path, seed)


def _given(path: Path, root: Path, seed: int) -> Iterator[Run]:
    opened = Bundle.open(path)
    if opened.manifest.task != "causal-lm":
        return classifier_runs(opened, root, path.name, [{"text": text} for text in MAILS], (1, 4), calibrate=False)
    return _texts(path, seed, path.name, calibrate=False)


def _texts(path: Path, seed: int, model: str = SMOLLM2, *, calibrate: bool = True) -> Iterator[Run]:
    """Runs on texts, in another order for each seed."""
    texts = TEXTS[seed % len(TEXTS) :] + TEXTS[: seed % len(TEXTS)]
    codec = Bundle.open(path, integrity="size").text
    assert codec is not None
    ids = codec.encode(" ".join(TEXTS))[:200]
    return decoder_runs(path, Ask(model, [{"text": text} for text in texts], ids, 24, calibrate=calibrate))


def _rampart(checkpoint: Path, precision: str, root: Path, seed: int) -> Iterator[Run]:
    at = [] if (checkpoint / "early_exit.json").exists() else [2, 3, 4, 5]
    opened = tiny_encoder.open_bundle(root / "bundle", checkpoint, at, precision=precision)
    texts = MAILS[seed % len(MAILS) :] + MAILS[: seed % len(MAILS)]
    return classifier_runs(opened, root, RAMPART, [{"text": text} for text in texts], (1, 4))
