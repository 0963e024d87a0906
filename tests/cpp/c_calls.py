"""The C interface by ctypes: its structs and callbacks, and the calls that several tests make."""

import ctypes as ct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiled import DEPS

from eecompile.runtime import Bundle

ONNXRUNTIME = str(DEPS / "lib" / "libonnxruntime.so.1").encode()
USAGE, CONTEXT_FULL, UNCALIBRATED, MISSING, INTEGRITY = 1, 2, 3, 4, 5


class OpenOptions(ct.Structure):
    _fields_ = (
        ("size", ct.c_size_t),
        ("threads", ct.c_int32),
        ("sizes_only", ct.c_int32),
        ("onnxruntime", ct.c_char_p),
        ("backend", ct.c_char_p),
        ("plugin", ct.c_char_p),
        ("decision", ct.c_char_p),
    )


class Threshold(ct.Structure):
    _fields_ = (("layer", ct.c_int64), ("criterion", ct.c_char_p), ("value", ct.c_double))


class SessionOptions(ct.Structure):
    _fields_ = (
        ("size", ct.c_size_t), ("mode", ct.c_char_p), ("pending_cap", ct.c_int64), ("minimum_depth", ct.c_int64),
        ("budget", ct.c_int64), ("thresholds", ct.POINTER(Threshold)), ("threshold_count", ct.c_size_t),
        ("kv", ct.c_char_p),
    )  # fmt: skip


class GenerateOptions(ct.Structure):
    _fields_ = (
        ("size", ct.c_size_t), ("max_new_tokens", ct.c_int64), ("temperature", ct.c_double), ("top_k", ct.c_int64),
        ("top_p", ct.c_double), ("seed", ct.c_uint64), ("stop", ct.POINTER(ct.c_int64)), ("stop_count", ct.c_size_t),
        ("sled_rate", ct.c_double),
    )  # fmt: skip


COUNTS = ("prompt_tokens", "tokens", "drafted", "rejected", "declined", "segment_passes", "layer_rows")


class Stats(ct.Structure):
    _fields_ = (
        ("size", ct.c_size_t), *((name, ct.c_int64) for name in COUNTS), ("prefill_seconds", ct.c_double),
        ("decode_seconds", ct.c_double), ("mean_depth", ct.c_double), ("stop_reason", ct.c_char * 16),
    )  # fmt: skip


class Prompt(ct.Structure):
    _fields_ = (("ids", ct.POINTER(ct.c_int64)), ("count", ct.c_size_t))


class RequestOptions(ct.Structure):
    _fields_ = (("size", ct.c_size_t), ("mode", ct.c_char_p), ("minimum_depth", ct.c_int64), ("budget", ct.c_int64))


class Token(ct.Structure):
    _fields_ = (
        ("id", ct.c_int64), ("type", ct.c_int64), ("begin", ct.c_int64), ("end", ct.c_int64), ("special", ct.c_int32),
        ("second", ct.c_int32),
    )  # fmt: skip


class Tokens(ct.Structure):
    _fields_ = (("tokens", ct.POINTER(Token)), ("count", ct.c_size_t))


class ClassifierOptions(ct.Structure):
    _fields_ = (
        ("size", ct.c_size_t), ("mode", ct.c_char_p), ("granularity", ct.c_char_p), ("minimum_depth", ct.c_int64),
        ("budget", ct.c_int64), ("thresholds", ct.POINTER(Threshold)), ("threshold_count", ct.c_size_t),
    )  # fmt: skip


class Answer(ct.Structure):
    _fields_ = (
        ("size", ct.c_size_t), ("text", ct.c_size_t), ("place", ct.c_int64), ("id", ct.c_int64), ("label", ct.c_int64),
        ("exit_layer", ct.c_int64), ("name", ct.c_char_p), ("scores", ct.POINTER(ct.c_double)),
        ("score_count", ct.c_size_t),
    )  # fmt: skip


CLASSIFY_COUNTS = ("texts", "tokens", "segment_passes", "layer_rows", "frozen_rows")


class ClassifyStats(ct.Structure):
    _fields_ = (
        ("size", ct.c_size_t), *((name, ct.c_int64) for name in CLASSIFY_COUNTS), ("seconds", ct.c_double),
        ("mean_depth", ct.c_double),
    )  # fmt: skip


ON_TOKEN = ct.CFUNCTYPE(ct.c_int32, ct.c_void_p, ct.c_int64, ct.c_int64)
ON_BATCH_TOKEN = ct.CFUNCTYPE(ct.c_int32, ct.c_void_p, ct.c_int64, ct.c_int64, ct.c_int64)
ON_END = ct.CFUNCTYPE(None, ct.c_void_p, ct.c_int64, ct.c_int32, ct.c_char_p, ct.POINTER(Stats))
ON_ANSWER = ct.CFUNCTYPE(None, ct.c_void_p, ct.POINTER(Answer))


def sized(kind: Any, **values: Any) -> Any:
    """A struct with its size filled in."""
    return kind(size=ct.sizeof(kind), **values)


def load(library: Path) -> Any:
    """The library, its pointers declared."""
    loaded = ct.CDLL(str(library))
    loaded.eecompile_last_error.restype = loaded.eecompile_label.restype = ct.c_char_p
    for name in ("close", "session_free", "batch_free", "text_free", "classifier_free"):
        freeing = getattr(loaded, f"eecompile_{name}")
        freeing.argtypes, freeing.restype = (ct.c_void_p,), None
    size, text, pointer = ct.c_size_t, ct.c_char_p, ct.c_void_p
    many = loaded.eecompile_generate_many
    many.argtypes = (pointer, pointer, size, size, pointer, ON_BATCH_TOKEN, ON_END, pointer)
    loaded.eecompile_batch_new.argtypes = (pointer, pointer, size, pointer)
    loaded.eecompile_batch_add.argtypes = (pointer, pointer, size, pointer, pointer, pointer)
    loaded.eecompile_batch_cancel.argtypes = (pointer, ct.c_int64)
    loaded.eecompile_batch_free_slots.argtypes, loaded.eecompile_batch_free_slots.restype = (pointer,), size
    loaded.eecompile_label.argtypes = (pointer, size)
    loaded.eecompile_tokenize.argtypes = (pointer, text, size, text, size, size, pointer, size, pointer)
    loaded.eecompile_classify.argtypes = (pointer, pointer, size, size, ON_ANSWER, pointer, pointer)
    return loaded


def said(c: Any) -> str:
    """What the last call that failed has to say."""
    return str(c.eecompile_last_error().decode())


def open_again(c: Any, opened: Bundle) -> Any:
    """The C interface's handle of a bundle that is open in Python."""
    handle, options = ct.c_void_p(), sized(OpenOptions, threads=opened.threads, onnxruntime=ONNXRUNTIME)
    assert c.eecompile_open(str(opened.files.path).encode(), ct.byref(options), ct.byref(handle)) == 0, said(c)
    return handle


def array_of(thresholds: Mapping[int, Mapping[str, float] | None]) -> dict[str, Any]:
    """Thresholds by layer, as the structs have them."""
    flat = [
        (layer, None if gate is None else gate.encode(), value)
        for layer, gates in thresholds.items()
        for gate, value in (gates or {None: 0.0}).items()
    ]
    return {"thresholds": (Threshold * len(flat))(*flat), "threshold_count": len(flat)}


def counts(stats: Any) -> dict[str, Any]:
    """What a request cost, without times: of the C struct, or of the Python runtime's."""
    reason = stats.stop_reason
    named = {name: getattr(stats, _python(stats, name)) for name in COUNTS}
    return {**named, "stop_reason": reason if isinstance(reason, str) else reason.decode(), "depth": stats.mean_depth}


def _python(stats: Any, name: str) -> str:
    return "heads_declined" if name == "declined" and not isinstance(stats, ct.Structure) else name
