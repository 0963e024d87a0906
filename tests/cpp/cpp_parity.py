"""One request in both runtimes, compared in all but the times."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiled import SOURCES

from eecompile.cli.many import result_json
from eecompile.runtime import Bundle, Sampling

WITH_TEXT = (SOURCES / "tokenizer").is_dir()
STATS = ("mean_depth", "drafted", "rejected", "segment_passes", "layer_rows")


def said(command: Path, path: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """What eecompile-run says."""
    return subprocess.run([command, path, *map(str, words)], capture_output=True, text=True, timeout=300)


def without_times(result: Mapping[str, Any]) -> dict[str, Any]:
    """What `--json` says of a request, without what depends on the clock."""
    return {**result, "stats": {name: result["stats"][name] for name in STATS}}


def words_of(opened: Bundle, mode: str, how: Sampling, thresholds: Mapping[int, Any], **more: Any) -> list[str]:
    """The options of a request; `more` are other options by their names in Python."""
    words: list[object] = ["--mode", mode, "--threads", opened.threads, "--temperature", how.temperature]
    words += ["--top-k", how.top_k, "--top-p", how.top_p, "--seed", how.seed]
    words += ["--sled", "--sled-rate", how.sled_rate] if how.sled else []
    for layer, bounds in ({} if mode == "full" else thresholds).items():
        pairs = [f"{layer}=never"] if bounds is None else [f"{layer}:{gate}={v!r}" for gate, v in bounds.items()]
        words += [word for pair in pairs for word in ("--threshold", pair)]
    words += [word for name, value in more.items() for word in (f"--{name.replace('_', '-')}", value)]
    return list(map(str, words))


def both(
    command: Path, opened: Bundle, prompt: Sequence[int], count: int | None, mode: str, how: Sampling,
    thresholds: Mapping[int, Mapping[str, float] | None], **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Run one request in both runtimes, compare all but the times, and return the answer."""
    overrides: dict[str, Any] = {} if mode == "full" else {"thresholds": thresholds}
    generation = opened.session(mode=mode, **more, **overrides).generate(prompt, max_new_tokens=count, sampling=how)
    tokens = list(generation)
    text = "".join(token.text for token in tokens) if opened.text and WITH_TEXT else None
    depths = [token.exit_layer for token in tokens]
    expected = result_json(list(prompt), generation.ids, text, depths, mode, generation.stats)
    words = ["--prompt-ids", ",".join(map(str, prompt)), "--json", *words_of(opened, mode, how, thresholds, **more)]
    words += [] if count is None else ["--max-new-tokens", str(count)]
    done = said(command, opened.files.path, *words)
    assert done.returncode == 0, done.stderr
    found = without_times(json.loads(done.stdout))
    assert found == without_times(expected)
    return found
