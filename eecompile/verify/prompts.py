"""What the engines are run on: prompts that come with eecompile, or a file of the user's own."""

from collections.abc import Sequence
from pathlib import Path

from eecompile.runtime import Bundle, request
from eecompile.runtime.prompts import Prompt, read_prompts
from eecompile.runtime.source import sequence

PARITY_EXTRA = 44  # rows of the long sequence past two full prefill passes: a third pass, of an odd size

TEXTS = (
    "A farmer has seven hens and each hen lays two eggs a day. How many eggs are there after three days?",
    "def area(width, height):\n    return",
)
PASSAGE = (
    "Early in the morning the harbour was still, and the boats lay in two rows along the stone wall. A man with a "
    "grey cap walked from one to the next, counting them, and wrote each number in a small book. When he came to the "
    "end he found that one was missing. He counted again from the other side, and again there were nineteen where "
    "there should have been twenty. The missing boat was the smallest, painted green, and it belonged to a woman who "
    "repaired nets in a shed behind the market. He went to ask her. She was not surprised. The boat, she said, had "
    "been taken by the tide during the night, because the rope was old and she had meant to change it in spring. Now "
    "it was autumn. They stood at the window and looked over the water, where a thin line of light divided the sea "
    "from the sky. If the wind turns before noon, she said, it will come back by itself; it always has. He wrote that "
    "down too, although he did not believe it, and drew a small question mark beside the number. At eleven the wind "
    "turned. By half past twelve the green boat was lying at the foot of the steps, a little lower in the water than "
    "before, with a gull asleep on the bow. The man crossed out the question mark, then the number, and finally wrote "
    "twenty in the place where it had stood, and below it the hour, the wind, and the name of the boat."
)


def prompt_ids(bundle: Bundle, prompts: Path | Sequence[Prompt] | None, tokens: int) -> list[list[int]]:
    """The prompts as token ids.

    None takes the built-in ones, cut so that `tokens` more fit the context and the policy's budget: a short and a long
    one (three prefill passes) of fixed ids or, with a tokenizer, of text. Raises UsageError for text without a
    tokenizer.
    """
    if isinstance(prompts, Path):
        prompts = read_prompts(prompts)
    if prompts is None:
        model, budget = bundle.manifest.model, bundle.files.policy.budget
        room = min(model.context - tokens, model.context if budget is None else budget // model.layers)
        return [ids[: max(1, room)] for ids in _built_in(bundle)]
    return [request.prompt_ids(bundle.text, prompt) for prompt in prompts]


def walked_ids(bundle: Bundle, prompt: list[int], most: int) -> tuple[list[int], list[int] | None]:
    """The tokens, at most `most`, whose rows are compared for a prompt, and their source where it is one: the target is
    then made up, as long as it may be, so that it has every distance between positions and passes of every width."""
    manifest = bundle.manifest
    if manifest.source is None:
        return prompt[:most], None
    return sequence(
        manifest, prompt, fixed_ids(min(most, manifest.model.context) - 1, manifest.model.vocab, len(prompt))
    )


def fixed_ids(count: int, vocab: int, seed: int) -> list[int]:
    """`count` ids spread over the vocabulary, the same on every machine."""
    return [(i * 7919 + 104729 * seed + 11) % vocab for i in range(count)]


def _built_in(bundle: Bundle) -> list[list[int]]:
    vocab, long = bundle.manifest.model.vocab, 2 * bundle.manifest.prefill_rows + PARITY_EXTRA
    if bundle.text is None:
        return [fixed_ids(7, vocab, 1), fixed_ids(long, vocab, 2)]
    texts = [bundle.text.encode(text) for text in (*TEXTS, PASSAGE)]
    return [fixed_ids(7, vocab, 1), *texts[:-1], texts[-1][:long]]
