"""The C interface by ctypes: the Python runtime's tokens, structs of other versions, faults as codes and texts."""

import ctypes as ct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from c_calls import (
    CONTEXT_FULL,
    INTEGRITY,
    ON_TOKEN,
    ONNXRUNTIME,
    UNCALIBRATED,
    USAGE,
    GenerateOptions,
    OpenOptions,
    SessionOptions,
    Stats,
    array_of,
    counts,
    load,
    open_again,
    said,
    sized,
)

from eecompile.runtime import Bundle, Sampling

GAIN = 0.35
PROMPT = [3, 1, 4, 1, 5]
DRAFTS = {1: {"max_prob": 0.05}, 3: {"max_prob": 0.02}}


@pytest.fixture(scope="module")
def c(library: Path) -> Any:
    return load(library)


@pytest.fixture(scope="module")
def opened(shelf: Any) -> Bundle:
    found: Bundle = shelf.bundle(at=[1, 3], gain=GAIN)
    return found


@pytest.fixture(scope="module")
def bundle(c: Any, opened: Bundle) -> Any:
    return open_again(c, opened)


def session(c: Any, bundle: Any, thresholds: Any = None, **options: Any) -> Any:
    handle = ct.c_void_p()
    given = sized(SessionOptions, **array_of(thresholds or {}), **options)
    assert c.eecompile_session_new(bundle, ct.byref(given), ct.byref(handle)) == 0, said(c)
    return handle


def generate(
    c: Any, handle: Any, prompt: list[int], most: int = 0, **options: Any
) -> tuple[list[tuple[int, int]], Any]:
    tokens: list[tuple[int, int]] = []

    def take(context: Any, token: int, depth: int) -> int:
        tokens.append((token, depth))
        return len(tokens) != most

    stats = sized(Stats)
    ids, given = (ct.c_int64 * len(prompt))(*prompt), sized(GenerateOptions, **options)
    done = c.eecompile_generate(handle, ids, len(prompt), ct.byref(given), ON_TOKEN(take), None, ct.byref(stats))
    assert done == 0, said(c)
    return tokens, stats


def test_the_interface_has_a_version(c: Any) -> None:
    assert c.eecompile_abi() == 1


@pytest.mark.parametrize("how", [Sampling(), Sampling(0.8, 9, 0.9, 77)], ids=["greedy", "sampled"])
def test_tokens_and_statistics_are_the_python_runtimes(c: Any, bundle: Any, opened: Bundle, how: Sampling) -> None:
    one = session(c, bundle, DRAFTS, mode=b"exact", pending_cap=5)
    own = opened.session(mode="exact", thresholds=DRAFTS, pending_cap=5)
    for prompt in (PROMPT, [9] * 140, PROMPT):
        sampling = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p, "seed": how.seed}
        tokens, stats = generate(c, one, prompt, max_new_tokens=50, **sampling)
        generation = own.generate(prompt, max_new_tokens=50, sampling=how)
        assert tokens == [(token.id, token.exit_layer) for token in generation]
        assert counts(stats) == counts(generation.stats)
        assert stats.stop_reason == b"length"
    assert stats.drafted > 0
    c.eecompile_session_free(one)


def test_a_caller_may_stop_and_give_its_own_ends(c: Any, bundle: Any, opened: Bundle) -> None:
    expected = tiny.tokens(opened, PROMPT, 20)
    one = session(c, bundle)
    tokens, stats = generate(c, one, PROMPT, most=4)
    assert ([t for t, _ in tokens], stats.stop_reason) == (expected[:4], b"cancelled")
    ends = (ct.c_int64 * 1)(expected[6])
    tokens, stats = generate(c, one, PROMPT, stop=ends, stop_count=1)
    assert [t for t, _ in tokens] == expected[: expected.index(expected[6]) + 1]
    assert stats.stop_reason == b"stop"
    c.eecompile_session_free(one)


def test_a_caller_of_an_older_version_is_understood(c: Any, bundle: Any, opened: Bundle) -> None:
    """A struct that ends early has zeros for the rest, and no more than its size is written."""
    one = session(c, bundle)
    ids, stats = (ct.c_int64 * len(PROMPT))(*PROMPT), Stats(size=Stats.drafted.offset, drafted=-7)
    options = GenerateOptions(size=GenerateOptions.temperature.offset, max_new_tokens=8, temperature=-1, top_k=-1)
    assert c.eecompile_generate(one, ids, len(PROMPT), ct.byref(options), None, None, ct.byref(stats)) == 0, said(c)
    assert (stats.size, stats.tokens, stats.drafted) == (Stats.drafted.offset, 8, -7)
    c.eecompile_session_free(one)


def test_a_struct_without_a_size_is_refused(c: Any, bundle: Any) -> None:
    """None of what it says would count."""
    handle, one, ids = ct.c_void_p(), session(c, bundle), (ct.c_int64 * 1)(1)
    assert c.eecompile_open(b".", ct.byref(OpenOptions(threads=2)), ct.byref(handle)) == USAGE
    assert c.eecompile_session_new(bundle, ct.byref(SessionOptions(mode=b"exact")), ct.byref(handle)) == USAGE
    assert c.eecompile_batch_new(bundle, ct.byref(SessionOptions(mode=b"exact")), 1, ct.byref(handle)) == USAGE
    assert handle.value is None
    few = GenerateOptions(max_new_tokens=1)
    assert c.eecompile_generate(one, ids, 1, ct.byref(few), None, None, None) == USAGE
    assert c.eecompile_generate(one, ids, 1, None, None, None, ct.byref(Stats())) == USAGE
    assert said(c) == "a struct does not say its size: fill in sizeof of it"
    c.eecompile_session_free(one)


def test_a_callback_cannot_generate_in_its_own_session(c: Any, bundle: Any, opened: Bundle) -> None:
    one, other, found = session(c, bundle), session(c, bundle), []
    ids = (ct.c_int64 * 2)(1, 2)

    def take(context: Any, token: int, depth: int) -> int:
        inner = [c.eecompile_generate(which, ids, 2, None, None, None, None) for which in (one, other)]
        found.append((token, inner, said(c)))
        return 1

    tells, three = ON_TOKEN(take), sized(GenerateOptions, max_new_tokens=3)
    prompt = (ct.c_int64 * len(PROMPT))(*PROMPT)
    assert c.eecompile_generate(one, prompt, len(PROMPT), ct.byref(three), tells, None, None) == 0, said(c)
    assert [token for token, *_ in found] == tiny.tokens(opened, PROMPT, 3)
    assert all(inner == [USAGE, 0] and "a session of its own" in text for _, inner, text in found)
    for handle in (one, other):
        c.eecompile_session_free(handle)


def test_sled_and_the_rules_for_skipped_layers(c: Any, bundle: Any, opened: Bundle) -> None:
    one, handle = session(c, bundle, kv=b"catch_up"), ct.c_void_p()
    tokens, _ = generate(c, one, PROMPT, max_new_tokens=12, sled_rate=1.5)
    assert [t for t, _ in tokens] == tiny.tokens(opened, PROMPT, 12, Sampling(sled=True, sled_rate=1.5))
    other = sized(SessionOptions, kv=b"propagate")
    assert c.eecompile_session_new(bundle, ct.byref(other), ct.byref(handle)) == USAGE
    assert "the bundle has no graphs for propagate" in said(c)
    c.eecompile_session_free(one)


def test_a_session_outlives_its_bundle(c: Any, opened: Bundle) -> None:
    handle, options = (
        ct.c_void_p(),
        sized(OpenOptions, threads=opened.threads, onnxruntime=ONNXRUNTIME, sizes_only=1),
    )
    assert c.eecompile_open(str(opened.files.path).encode(), ct.byref(options), ct.byref(handle)) == 0, said(c)
    one = session(c, handle)
    c.eecompile_close(handle)
    tokens, _ = generate(c, one, PROMPT, max_new_tokens=9)
    assert [t for t, _ in tokens] == tiny.tokens(opened, PROMPT, 9)
    c.eecompile_session_free(one)


def test_faults_are_codes_and_texts(c: Any, bundle: Any, opened: Bundle, tmp_path: Path) -> None:
    handle, path = ct.c_void_p(), str(opened.files.path).encode()
    threads = opened.threads + 1
    cases = [
        (str(tmp_path).encode(), sized(OpenOptions), INTEGRITY, "no manifest.json"),
        (path, sized(OpenOptions, threads=threads), USAGE, f"not {threads}"),
        (path, sized(OpenOptions, onnxruntime=ONNXRUNTIME, decision=b"maybe"), USAGE, "there is no decision maybe"),
        (path, sized(OpenOptions, onnxruntime=ONNXRUNTIME, decision=b"conditional"), USAGE, "nothing decides on a GPU"),
        (None, None, USAGE, "there is no path"),
    ]
    for where, options, code, text in cases:
        assert c.eecompile_open(where, options and ct.byref(options), ct.byref(handle)) == code
        assert handle.value is None
        assert text in said(c)
    assert (
        c.eecompile_session_new(bundle, ct.byref(sized(SessionOptions, mode=b"confident")), ct.byref(handle))
        == UNCALIBRATED
    )
    assert "eecompile calibrate" in said(c)
    one = session(c, bundle)
    ids = (ct.c_int64 * 2)(1, 999)
    assert c.eecompile_generate(one, ids, 2, None, None, None, None) == USAGE
    assert said(c) == "prompt: token id 999 is outside 0..127"
    far = sized(GenerateOptions, max_new_tokens=1000)
    assert c.eecompile_generate(one, ids, 1, ct.byref(far), None, None, None) == CONTEXT_FULL
    assert c.eecompile_generate(None, ids, 1, None, None, None, None) == USAGE
    c.eecompile_session_free(one)


BESIDE = """
import ctypes as ct, sys
library, onnxruntime, bundle = sys.argv[1:]
base = ct.CDLL(onnxruntime).OrtGetApiBase
base.restype = ct.POINTER(ct.c_void_p)
get_api = ct.CFUNCTYPE(ct.POINTER(ct.c_void_p), ct.c_uint32)(base()[0])
create_env = ct.CFUNCTYPE(ct.c_void_p, ct.c_int, ct.c_char_p, ct.c_void_p)(get_api(21)[3])
assert create_env(2, b"another", ct.byref(ct.c_void_p())) is None
class Options(ct.Structure):
    _fields_ = (("size", ct.c_size_t), ("threads", ct.c_int32), ("sizes_only", ct.c_int32), ("library", ct.c_char_p))
c = ct.CDLL(library)
c.eecompile_last_error.restype = ct.c_char_p
options = Options(ct.sizeof(Options), 2, 1, onnxruntime.encode())
print(c.eecompile_open(bundle.encode(), ct.byref(options), ct.byref(ct.c_void_p())))
print(c.eecompile_last_error().decode())
"""


def test_another_user_of_onnx_runtime_is_told_to_come_later(library: Path, opened: Bundle) -> None:
    """Whose environment, which a process has one of, has no threads to share: the bundle is not to blame."""
    words = [library, ONNXRUNTIME.decode(), opened.files.path]
    done = subprocess.run([sys.executable, "-c", BESIDE, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{USAGE}\nthis process runs ONNX Runtime without a thread pool"), done.stdout
    assert "CreateEnvWithGlobalThreadPools" in done.stdout
