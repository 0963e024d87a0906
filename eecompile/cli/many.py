"""`run --input`: a file of prompts through a batch, a line of JSON for each."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eecompile.bundle import disk
from eecompile.cli.console import err, stages
from eecompile.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from eecompile.runtime import Batch, Bundle, Request, Sampling, Stats


def result_json(
    prompt_ids: list[int], ids: list[int], text: str | None, depths: list[int], mode: str, stats: "Stats"
) -> dict[str, Any]:
    """What `run --json` says of a request."""
    return {
        "prompt_ids": prompt_ids, "token_ids": ids, "text": text, "exit_layers": depths, "mode": mode,
        "stop_reason": stats.stop_reason,
        "stats": {
            "tokens_per_second": stats.tokens_per_second, "prefill_seconds": stats.prefill_seconds,
            "mean_depth": stats.mean_depth, "drafted": stats.drafted, "rejected": stats.rejected,
            "segment_passes": stats.segment_passes, "layer_rows": stats.layer_rows,
        },
    }  # fmt: skip


def run_file(
    bundle: "Bundle", batch: "Batch", source: Path, target: Path, *, max_new_tokens: int | None, sampling: "Sampling",
    raw: bool, mode: str,
) -> None:  # fmt: skip
    """Continue every prompt of `source` (as for `bench`: .jsonl or .txt) and write a line each to `target`, in order.

    The file appears when all is done. A sequence that fails has "error" in its line, and raises CheckFailed at the end.
    Raises UsageError naming the line of a prompt that cannot be served.
    """
    from eecompile.runtime.batch import run_all
    from eecompile.runtime.prompts import read_prompts

    prompts, drawn = read_prompts(source), 0

    def encoded() -> Iterator[list[int]]:
        nonlocal drawn
        for prompt in prompts:
            drawn += 1
            yield _ids(bundle, prompt, raw)

    lines: dict[int, str] = {}
    failed = 0
    with stages("run", len(prompts)) as begin:
        try:
            for request in run_all(batch, encoded(), max_new_tokens=max_new_tokens, sampling=sampling):
                begin(f"{len(lines) + 1} of {len(prompts)} done")
                lines[request.number] = json.dumps(_line(request, mode, bundle.text is not None), ensure_ascii=False)
                failed += request.error is not None
        except UsageError as e:
            raise UsageError(e.what, where=f"{source}, prompt {drawn}", mend=e.mend) from e
    with disk.replacing_file(target) as file:
        file.writelines(f"{lines[i]}\n" for i in range(len(lines)))
    err.print(f"{len(lines)} prompts, {failed} failed, {batch.pool.passes} passes")
    if failed:
        raise CheckFailed(
            f"{failed} of {len(lines)} prompts failed", where=str(target), mend='see "error" in its lines'
        )


def _ids(bundle: "Bundle", prompt: Any, raw: bool) -> list[int]:
    from eecompile.runtime.request import prompt_ids

    if isinstance(prompt, str) and not raw and bundle.text is not None and bundle.text.chat_template:
        return bundle.text.encode_chat([{"role": "user", "content": prompt}])
    return prompt_ids(bundle.text, prompt)


def _line(request: "Request", mode: str, has_text: bool) -> dict[str, Any]:
    text = request.text if has_text else None
    found = result_json(request.prompt_ids, request.ids, text, request.exit_layers, mode, request.stats)
    return found if request.error is None else {**found, "error": str(request.error)}
