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

    The file appears when all is done. A prompt that cannot be served and a sequence that fails have "error" in their
    line, and raise CheckFailed at the end.
    """
    from eecompile.runtime.batch import run_all
    from eecompile.runtime.prompts import read_prompts

    prompts = read_prompts(source)
    lines: list[dict[str, Any]] = [{}] * len(prompts)
    served: list[int] = []

    def encoded() -> Iterator[list[int]]:
        for number, prompt in enumerate(prompts):
            try:
                ids = _ids(bundle, prompt, raw)
                batch.check(ids, max_new_tokens)
            except UsageError as e:
                lines[number] = {"error": str(e)}
                continue
            served.append(number)
            yield ids

    with disk.replacing_file(target) as file:
        with stages("run", len(prompts)) as begin:
            for request in run_all(batch, encoded(), max_new_tokens=max_new_tokens, sampling=sampling):
                begin(f"{sum(map(bool, lines)) + 1} of {len(prompts)} done")
                lines[served[request.number]] = _line(request, mode, bundle.text is not None)
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    failed = sum("error" in line for line in lines)
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
