"""Many requests at once in the C interface, joining and leaving at any step, against the Python runtime's batches."""

import ctypes as ct
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from c_calls import (
    CONTEXT_FULL,
    ON_BATCH_TOKEN,
    ON_END,
    UNCALIBRATED,
    USAGE,
    GenerateOptions,
    Prompt,
    RequestOptions,
    SessionOptions,
    Stats,
    array_of,
    counts,
    load,
    open_again,
    said,
    sized,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.errors import ContextFull, EECompileError, Uncalibrated, UsageError
from eecompile.runtime import Bundle, Sampling
from eecompile.runtime.batch import Batch, Request, run_all

GAIN = 0.35
RULES = {"kv": ("catch_up", "propagate", "selected")}
DRAFTS: dict[int, Any] = {1: {"max_prob": 0.05}, 3: {"max_prob": 0.02}}
MODES = ["full", "confident", "exact"]
WARM = Sampling(temperature=0.8, top_k=9, top_p=0.95, seed=7)
ALLOWED = [{"max_prob": 0.25}, {"max_prob": 0.15}, {"max_prob": 0.05}]
Emission = tuple[int, int, int]  # request, token, depth


@pytest.fixture(scope="module")
def c(library: Path) -> Any:
    return load(library)


def prompt_of(seed: int, length: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, tiny.VOCAB, length)]


def generating(how: Sampling, most: int | None, stop: Sequence[int] | None) -> Any:
    ends = None if stop is None else (ct.c_int64 * max(1, len(stop)))(*stop)
    return sized(
        GenerateOptions, max_new_tokens=most or 0, temperature=how.temperature, top_k=how.top_k, top_p=how.top_p,
        seed=how.seed, stop=ends, stop_count=len(stop or ()), sled_rate=how.sled_rate if how.sled else 0.0,
    )  # fmt: skip


@dataclass
class InC:
    """A batch of the C interface that keeps what it is told."""

    c: Any
    handle: Any = field(default_factory=ct.c_void_p)
    emitted: list[Emission] = field(default_factory=list)
    ended: dict[int, dict[str, Any]] = field(default_factory=dict)
    refuse_after: dict[int, int] = field(default_factory=dict)  # tokens after which a request's callback says no
    busy: bool = True

    def open(self, bundle: Any, slots: int, thresholds: Any = None, **options: Any) -> "InC":
        given = sized(SessionOptions, **array_of(thresholds or {}), **options)
        done = self.c.eecompile_batch_new(bundle, ct.byref(given), slots, ct.byref(self.handle))
        assert done == 0, said(self.c)
        return self

    def add(self, prompt: Sequence[int], options: Any, **own: Any) -> int:
        """The request's number, or the code of the fault, negative."""
        number, ids = ct.c_int64(), (ct.c_int64 * len(prompt))(*prompt)
        own = {name: value.encode() if isinstance(value, str) else value for name, value in own.items()}
        how = ct.byref(sized(RequestOptions, **own))
        done = self.c.eecompile_batch_add(self.handle, ids, len(ids), ct.byref(options), how, ct.byref(number))
        return number.value if done == 0 else -int(done)

    def take(self, context: Any, request: int, token: int, depth: int) -> int:
        self.emitted.append((request, token, depth))
        return sum(r == request for r, _, _ in self.emitted) != self.refuse_after.get(request)

    def end(self, context: Any, request: int, code: int, fault: bytes, stats: Any) -> None:
        assert request not in self.ended
        assert (code, fault) == (0, b"")
        self.ended[request] = counts(stats.contents)

    def step(self) -> list[Emission]:
        """What was emitted."""
        before, busy = len(self.emitted), ct.c_int32()
        calls = ON_BATCH_TOKEN(self.take), ON_END(self.end)
        assert self.c.eecompile_batch_step(self.handle, *calls, None, ct.byref(busy)) == 0, said(self.c)
        self.busy = bool(busy.value)
        return self.emitted[before:]

    def cancel(self, number: int) -> int:
        return int(self.c.eecompile_batch_cancel(self.handle, number))

    @property
    def free(self) -> int:
        return int(self.c.eecompile_batch_free_slots(self.handle))

    def close(self) -> None:
        self.c.eecompile_batch_free(self.handle)


def plan(seed: int, slots: int) -> list[list[dict[str, Any]]]:
    """Requests that join before each of some steps, and when they are cancelled: of every length, mode and limit."""
    rng, steps, number = np.random.default_rng(seed), list[list[dict[str, Any]]](), 0
    while number < 3 * slots:
        joining: list[dict[str, Any]] = []
        for _ in range(int(rng.choice([0, 0, 1, 2, slots]))):
            length = int(rng.integers(60, 170) if rng.random() < 0.2 else rng.integers(1, 9))
            warm = Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=int(rng.integers(99)))
            joining.append({
                "prompt": prompt_of(int(rng.integers(1 << 30)), length), "most": int(rng.integers(1, 20)),
                "how": warm if rng.random() < 0.4 else Sampling(),
                "stop": rng.integers(0, tiny.VOCAB, 8).tolist() if rng.random() < 0.3 else [],
                "mode": str(rng.choice(MODES)) if rng.random() < 0.5 else None,
                "minimum_depth": int(rng.integers(1, 4)) if rng.random() < 0.3 else None,
                "budget": 4 * length + int(rng.integers(-20, 90)) if rng.random() < 0.4 else None,
                "cancel": int(rng.integers(0, 12)) if rng.random() < 0.2 else None,  # steps after it joined
            })  # fmt: skip
            number += 1
        steps.append(joining)
    return steps


def added(own: Batch, one: dict[str, Any], changed: dict[str, Any]) -> Request | int:
    """The request in the Python batch, or the code of why there is none."""
    options = {"max_new_tokens": one["most"], "sampling": one["how"], "stop": one["stop"]}
    try:
        return own.add(one["prompt"], **options, **changed)
    except EECompileError as e:
        return {UsageError: USAGE, ContextFull: CONTEXT_FULL, Uncalibrated: UNCALIBRATED}[type(e)]


def run_both(mine: InC, own: Batch, steps: Sequence[Sequence[dict[str, Any]]]) -> tuple[list[Request], int]:
    """Step both batches, and hold each step's tokens, slots and ends against the other's; the requests, and how many
    neither took."""
    requests, refused, done, cancels = list[Request](), 0, 0, dict[int, list[Request]]()
    while own.busy or done < len(steps):
        for one in steps[done] if done < len(steps) else ():
            changed = {name: one[name] for name in ("mode", "minimum_depth", "budget") if one[name] is not None}
            number = mine.add(one["prompt"], generating(one["how"], one["most"], one["stop"]), **changed)
            request = added(own, one, changed)
            if isinstance(request, int):
                assert number == -request
                refused += 1
                continue
            assert number == request.number, said(mine.c)
            requests.append(request)
            if one["cancel"] is not None:
                cancels.setdefault(done + one["cancel"], []).append(request)
        for request in cancels.get(done, ()):
            own.cancel(request)
            assert mine.cancel(request.number) == 0, said(mine.c)
        assert mine.free == own.free
        assert mine.step() == [(request.number, token.id, token.exit_layer) for request, token in own.step()]
        assert mine.busy == own.busy
        assert mine.ended == {r.number: counts(r.stats) for r in requests if r.done}
        done += 1
    assert len(mine.ended) == len(requests)
    return requests, refused


@pytest.fixture(scope="module")
def ruled(shelf: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A bundle whose policy and calibration are of a K/V rule, for each."""
    plain: Bundle = shelf.bundle(at=[1, 2, 3], gain=GAIN, build=RULES, slots=4)
    root = tmp_path_factory.mktemp("batches")
    return {kv: tiny.calibrate(shutil.copytree(plain.files.path, root / kv), ALLOWED, kv) for kv in RULES["kv"]}


@pytest.mark.parametrize("rule", RULES["kv"])
def test_requests_join_and_leave_a_batch_at_any_step(c: Any, ruled: dict[str, Bundle], rule: str) -> None:
    """Step by step the Python batch's tokens and depths, and at each end what it cost; modes side by side."""
    opened, ends, depths, refused = ruled[rule], Counter[str](), Counter[int](), 0
    handle, thresholds = open_again(c, opened), dict(zip((1, 2, 3), ALLOWED, strict=True))

    @settings(max_examples=7)
    @given(seed=st.integers(0, 1 << 20), slots=st.integers(1, 4), cap=st.integers(1, 8), mode=st.sampled_from(MODES))
    def run(seed: int, slots: int, cap: int, mode: str) -> None:
        nonlocal refused
        bounds: Any = {} if mode == "full" else thresholds
        mine = InC(c).open(handle, slots, bounds, mode=mode.encode(), pending_cap=cap)
        own = opened.batch(slots=slots, mode=mode, pending_cap=cap, thresholds=bounds)
        requests, unserved = run_both(mine, own, plan(seed, slots))
        mine.close()
        refused += unserved
        for request in requests:
            ends[request.stats.stop_reason] += 1
            depths.update(request.exit_layers)

    run()
    c.eecompile_close(handle)
    assert min(ends["length"], ends["stop"], ends["budget"], ends["cancelled"], refused) > 0, (ends, refused)
    assert len(depths) == 4


def test_a_batch_of_its_own_requests(c: Any, ruled: dict[str, Bundle]) -> None:
    """What Python's have no callbacks for: requests added and refused by them, and a batch that outlives its bundle."""
    opened = ruled["catch_up"]
    handle = open_again(c, opened)
    mine = InC(c, refuse_after={1: 3}).open(handle, 2)
    c.eecompile_close(handle)
    greedy = generating(Sampling(), 6, [])
    assert [mine.add(prompt, greedy) for prompt in ([3, 1], [4, 1], [5])] == [0, 1, 2]
    assert (mine.free, mine.add([], greedy), mine.add([999], greedy)) == (0, -USAGE, -USAGE)
    assert mine.add([1], generating(Sampling(sled=True), 6, [])) == -USAGE
    assert "SLED does not run in batches" in said(c)
    assert mine.add([1], greedy, mode="sleepy") == -USAGE
    seen: list[int] = []

    def take(context: Any, request: int, token: int, depth: int) -> int:
        if not seen:
            seen.append(mine.add([6, 6], greedy))
            seen.append(mine.cancel(request))
            seen.append(c.eecompile_batch_step(mine.handle, ON_BATCH_TOKEN(), ON_END(), None, None))
        return mine.take(context, request, token, depth)

    calls = ON_BATCH_TOKEN(take), ON_END(mine.end)
    assert c.eecompile_batch_step(mine.handle, *calls, None, None) == 0, said(c)
    assert seen == [3, USAGE, USAGE]
    while mine.busy:
        mine.step()
    found = {number: [t for r, t, _ in mine.emitted if r == number] for number in range(4)}
    for number, prompt in enumerate([[3, 1], [4, 1], [5], [6, 6]]):
        assert found[number] == tiny.tokens(opened, prompt, 6, stop=[])[: 3 if number == 1 else 6]
    assert [mine.ended[n]["stop_reason"] for n in range(4)] == ["length", "cancelled", "length", "length"]
    assert (mine.cancel(2), mine.cancel(4), mine.cancel(-1)) == (0, USAGE, USAGE)
    mine.close()


def test_many_prompts_in_one_call(c: Any, ruled: dict[str, Bundle]) -> None:
    """Each ends in order, with Python's tokens and costs; one that cannot be served says why."""
    opened = ruled["catch_up"]
    prompts = [prompt_of(i, n) for i, n in enumerate([3, 140, 1, 30])]
    batch = opened.batch(slots=2, mode="exact", thresholds=DRAFTS)
    own = sorted(run_all(batch, prompts, max_new_tokens=12, sampling=WARM), key=lambda r: r.number)
    one, handle = ct.c_void_p(), open_again(c, opened)
    how = sized(SessionOptions, mode=b"exact", **array_of(DRAFTS))
    assert c.eecompile_session_new(handle, ct.byref(how), ct.byref(one)) == 0, said(c)
    tokens, ends = dict[int, list[tuple[int, int]]](), list[tuple[int, int, str, dict[str, Any]]]()

    def take(context: Any, request: int, token: int, depth: int) -> int:
        tokens.setdefault(request, []).append((token, depth))
        return 1

    def end(context: Any, request: int, code: int, fault: bytes, stats: Any) -> None:
        assert stats.contents.size == ct.sizeof(Stats)
        ends.append((request, code, fault.decode(), counts(stats.contents)))

    given_ = [*prompts, [5, 999], []]
    array = (Prompt * len(given_))(*(((ct.c_int64 * len(p))(*p), len(p)) for p in given_))
    options = ct.byref(generating(WARM, 12, None))
    calls = ON_BATCH_TOKEN(take), ON_END(end)
    assert c.eecompile_generate_many(one, array, len(array), 2, options, *calls, None) == 0, said(c)
    assert [ends[i] for i in range(4)] == [(r.number, 0, "", counts(r.stats)) for r in own]
    assert [tokens[i] for i in range(4)] == [list(zip(r.ids, r.exit_layers, strict=True)) for r in own]
    assert [end[:3] for end in ends[4:]] == [
        (4, USAGE, "prompt: token id 999 is outside 0..127"),
        (5, USAGE, "the prompt is empty\n  mend: give at least one token"),
    ]
    none = ON_BATCH_TOKEN(), ON_END()
    assert c.eecompile_generate_many(one, array, 4, 2, options, *none, None) == 0, said(c)
    assert c.eecompile_generate_many(one, array, 4, 5, options, *none, None) == USAGE
    assert "5 slots are not from 1 to the bundle's 4" in said(c)
    assert c.eecompile_generate_many(one, None, 4, 2, options, *none, None) == USAGE
    c.eecompile_session_free(one)
    c.eecompile_close(handle)


def test_a_batch_that_cannot_be_made_says_why(c: Any, ruled: dict[str, Bundle]) -> None:
    handle, made = open_again(c, ruled["catch_up"]), ct.c_void_p()
    bold = array_of({1: {"max_prob": 0.01}})
    for options, slots, code, text in (
        (sized(SessionOptions), 5, USAGE, "5 slots"),
        (sized(SessionOptions, mode=b"confident", **bold), 2, UNCALIBRATED, "bolder"),
        (sized(SessionOptions, mode=b"sleepy"), 2, USAGE, "no mode sleepy"),
    ):
        assert c.eecompile_batch_new(handle, ct.byref(options), slots, ct.byref(made)) == code
        assert (made.value, text in said(c)) == (None, True), said(c)
    c.eecompile_close(handle)
