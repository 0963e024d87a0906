"""`verify` for classifiers: every boundary and the logits against a reference, batches against their texts alone, the
decision against float64, compaction against none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile import contract as c
from eecompile.errors import IntegrityError
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.classify import Classifier
from eecompile.runtime.labels import ClassRule, Said
from eecompile.runtime.prompts import Prompt, read_texts
from eecompile.runtime.texts import EncodedText, TextEncoder, TextInput
from eecompile.runtime.trace_texts import TextTrace, TextTracer
from eecompile.student.encoder_reference import EncoderReference
from eecompile.student.encoder_student import EncoderStudent, open_encoder
from eecompile.verify.compare import Comparator, find_comparator
from eecompile.verify.criteria import criteria_of
from eecompile.verify.parity import check_rows
from eecompile.verify.prompts import PASSAGE, TEXTS, fixed_ids
from eecompile.verify.references import recorded_array
from eecompile.verify.report import Check, VerifyReport, at_most
from eecompile.verify.tolerances import NODE, PARITY, PASSES

Float = NDArray[np.float32]
Rows = list[Float]  # at each boundary [N, D], shallow first; the last are the logits
Progress = Callable[[str], None]
RECORDED_NAME = "numpy float32 recorded at build"


@dataclass(frozen=True)
class _Subject:
    """A bundle that is being verified, and what its engines made of the texts, in one batch."""

    bundle: Bundle
    texts: list[EncodedText]
    trace: TextTrace
    compare: Comparator

    @property
    def names(self) -> list[str]:
        """The boundaries and the logits."""
        layers = [0, *(e.layer for e in self.bundle.manifest.exits), self.bundle.manifest.model.layers]
        return [*(f"hidden_{n}" for n in layers), "logits"]


def verify_classifier(
    bundle: Bundle, hashes: Check, *, checkpoint: Path | None, prompts: Path | Sequence[Prompt] | None,
    progress: Progress,
) -> VerifyReport:  # fmt: skip
    """As `verify_bundle`, for an encoder. `hashes` is the check that opening the bundle was."""
    encoder = TextEncoder(bundle.manifest, bundle.text, truncate=True)
    texts = encoder.encode(_inputs(bundle, prompts))
    progress("engines")
    trace = TextTracer(bundle, boundaries=True).trace(texts)
    s = _Subject(bundle, texts, trace, find_comparator())
    checks, references = [hashes, _check_batch(s)], [RECORDED_NAME]
    progress("recorded reference")
    checks += _check_recorded(s)
    if checkpoint is not None:
        student = open_encoder(checkpoint)
        checks.append(same := _same_model(bundle, student))
        if same.passed:
            progress("checkpoint")
            name, run = _reference(student)
            references.append(name)
            checks += _check_parity(s, "checkpoint", name, run)
    if bundle.manifest.task != "regression":
        checks += _check_nodes(s)
    progress("compaction")
    checks += _check_compaction(s)
    return VerifyReport(
        bundle.manifest.digest, bundle.manifest.precision, tuple(references), s.compare.name, tuple(checks)
    )


def _inputs(bundle: Bundle, prompts: Path | Sequence[Prompt] | None) -> Sequence[TextInput]:
    if isinstance(prompts, Path):
        return list(read_texts(prompts))
    if prompts is not None:
        return prompts
    model = bundle.manifest.model
    made = [fixed_ids(n, model.vocab, seed) for seed, n in enumerate((2, 7, 24, min(70, model.context)), 1)]
    return [ids[: model.context] for ids in made] if bundle.text is None else [*made[:2], *TEXTS, PASSAGE]


def _engine_rows(trace: TextTrace) -> Rows:
    return [*trace.boundaries, trace.logits]


def _check_batch(s: _Subject) -> Check:
    """A text's rows in a batch against the same text alone."""
    tracer = TextTracer(s.bundle, boundaries=True)
    alone = [_engine_rows(tracer.trace([text])) for text in s.texts]
    worst, passed = 0.0, True
    for together, apart in zip(_engine_rows(s.trace), map(np.concatenate, zip(*alone, strict=True)), strict=True):
        figure, holds = s.compare(apart, together, PASSES)["largest"]
        worst, passed = float(np.maximum(worst, figure)), passed and holds
    figures = {"texts": len(s.texts), "largest": worst}
    note = f"every boundary and the logits, each text alone and in one batch; compared by {s.compare.name}"
    return Check("batch", passed, figures, {"largest": at_most(PASSES["largest"])}, note)


def _check_recorded(s: _Subject) -> list[Check]:
    m, root = s.bundle.manifest, s.bundle.files.path
    ids = recorded_array(root, "token_ids", np.int64, (-1,))
    if not 0 < len(ids) <= m.model.context or ids.min() < 0 or ids.max() >= m.model.vocab:
        mend = "build the bundle again"
        raise IntegrityError("no token ids of this model", where="reference/token_ids.npy", mend=mend)
    shape, units = (len(ids), m.model.hidden), len(ids) if m.task == c.TOKENS else 1
    names = [*(f"hidden_{e.layer}" for e in m.exits), "finished"]
    rows = [recorded_array(root, name, np.float32, shape) for name in names]
    logits = recorded_array(root, "logits", np.float32, (units, m.classes))
    text = EncodedText(ids.tolist(), [0] * len(ids), [False] * len(ids))
    found = _engine_rows(TextTracer(s.bundle, boundaries=True).trace([text]))[1:]
    return _compared(s, "recorded", RECORDED_NAME, s.names[1:], found, [*rows, logits])


def _check_parity(s: _Subject, label: str, name: str, run: Callable[[EncodedText], Rows]) -> list[Check]:
    """The engines' batch against a reference that runs each text alone."""
    layers = [int(n.removeprefix("hidden_")) for n in s.names[:-1]]
    wanted = [[rows[n] for n in (*layers, -1)] for rows in map(run, s.texts)]
    expected = [np.concatenate(parts) for parts in zip(*wanted, strict=True)]
    return _compared(s, label, name, s.names, _engine_rows(s.trace), expected)


def _compared(
    s: _Subject, label: str, reference: str, names: Sequence[str], actual: Rows, expected: Rows
) -> list[Check]:
    scored = s.bundle.manifest.task != "regression"
    tolerance = PARITY[s.bundle.manifest.precision]
    return [
        check_rows(f"{label} {n}", reference, a, e, s.compare, tolerance, logits=scored and n == "logits")
        for n, a, e in zip(names, actual, expected, strict=True)
    ]


def _check_nodes(s: _Subject) -> list[Check]:
    """What every exit says against float64 on its own logits."""
    return [_check_node(e.layer, said) for e, said in zip(s.bundle.manifest.exits, s.trace.exits, strict=True)]


def _check_node(layer: int, said: Said) -> Check:
    exact = criteria_of(said.logits)
    figures = {n: float(np.abs(getattr(said, n) - exact[n]).max()) for n in c.HEAD_CRITERIA}
    passed = all(figures[n] <= NODE.of(n) for n in c.HEAD_CRITERIA)
    tolerance = {n: at_most(NODE.of(n)) for n in c.HEAD_CRITERIA}
    note = "the exit's decision against float64 on its own logits"
    return Check(f"decision_{layer}", passed, {"rows": len(said.logits), **figures}, tolerance, note)


def _check_compaction(s: _Subject) -> list[Check]:
    """Answers with and without compaction, at thresholds that about half of the rows pass."""
    m = s.bundle.manifest
    if not m.exits:
        return []
    kinds = [("sentence", False)] + ([("token", True)] if m.task == c.TOKENS else [])
    return [_check_one_compaction(s, name, _half(s, per_token), per_token) for name, per_token in kinds]


def _half(s: _Subject, per_token: bool) -> list[ClassRule | None]:
    """Rules of all exits that about half of what may leave passes: of the tokens, or of the texts."""
    rules, before = list[ClassRule | None](), None
    texts = range(len(s.texts))
    for said in s.trace.exits:
        if said.max_prob is None:
            delta = 1.0 if before is None else float(np.median(np.abs(said.logits - before)))
            rules.append(ClassRule.of({"delta": delta}))
            before = said.logits
            continue
        sure = said.max_prob
        if not per_token:
            sure = np.array([said.max_prob[(s.trace.text == n) & ~s.trace.special].min(initial=1.0) for n in texts])
        rules.append(ClassRule.of({"max_prob": float(np.median(sure))}))
    return rules


def _check_one_compaction(s: _Subject, name: str, rules: Sequence[ClassRule | None], per_token: bool) -> Check:
    encoder = TextEncoder(s.bundle.manifest, s.bundle.text)
    found = [
        Classifier(
            s.bundle.manifest, s.bundle.graphs, encoder, rules, per_token=per_token, compaction=compaction
        ).answer(s.texts)
        for compaction in (True, False)
    ]  # fmt: skip
    different = int((found[0].depth != found[1].depth).sum())
    answers = int((found[0].logits != found[1].logits).any(axis=1).sum())
    early = float((found[0].depth < s.bundle.manifest.model.layers).mean())
    figures = {"answers": len(found[0].depth), "early": early, "other_depth": different, "other_logits": answers}
    note = "the runtime's answers with and without what has left, at thresholds that half of them pass"
    bounds = {"other_depth": at_most(0), "other_logits": at_most(0)}
    return Check(f"compaction per {name}", not different and not answers, figures, bounds, note)


def _reference(student: EncoderStudent) -> tuple[str, Callable[[EncodedText], Rows]]:
    """Hidden states after 0, 1, ... layers and, last, the logits, of one text: by Hugging Face, else by numpy."""
    try:
        import torch
        import transformers
    except ImportError as e:
        model = EncoderReference(student.spec, student.store)

        def by_numpy(text: EncodedText) -> Rows:
            rows = model.run(text.ids, text.types)
            return [*rows.boundaries, rows.logits]

        return f"numpy float32 on the checkpoint ({e.name} is not installed)", by_numpy
    kind: Any = transformers.AutoModelForSequenceClassification
    if student.spec.per_token:
        kind = transformers.AutoModelForTokenClassification
    loaded = kind.from_pretrained(
        str(student.path), dtype=torch.float32, attn_implementation="eager", local_files_only=True, use_safetensors=True
    ).eval()

    def by_torch(text: EncodedText) -> Rows:
        types = {"token_type_ids": torch.tensor([text.types])} if student.spec.types else {}
        with torch.no_grad():
            out = loaded(torch.tensor([text.ids]), output_hidden_states=True, **types)
        logits = out.logits[0] if student.spec.per_token else out.logits
        return [*(states[0].numpy() for states in out.hidden_states), logits.numpy()]

    return f"hugging face float32 (transformers {transformers.__version__}, torch {torch.__version__})", by_torch


def _same_model(bundle: Bundle, student: EncoderStudent) -> Check:
    """That the checkpoint is of the manifest's family, task and sizes."""
    m, spec = bundle.manifest, student.spec
    names = ("family", "layers", "hidden", "heads", "vocab")
    pairs = {n: (getattr(spec, n), getattr(m.model, n)) for n in names}
    pairs |= {"task": (spec.task, m.task), "labels": (list(spec.labels), m.labels)}
    other = [f"{n} {have}, not {wanted}" for n, (have, wanted) in pairs.items() if have != wanted]
    detail = f"the checkpoint is of another model: {'; '.join(other)}" if other else "of the manifest's sizes"
    return Check("checkpoint", not other, {"different": len(other)}, {"different": at_most(0)}, detail)
