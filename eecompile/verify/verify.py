"""`verify`: does this bundle compute its model, and do its modes keep their promises?

In order: hashes; the weights against the checkpoint's; passes of different widths against each other; every boundary
against a reference; the exit graphs and the decision node; exit decisions; a device's graphs; exact mode against full
mode.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from eecompile import contract as c
from eecompile.engines.records import check_engines
from eecompile.runtime import Bundle
from eecompile.runtime.device_plan import device_plan
from eecompile.runtime.prompts import Prompt
from eecompile.student.encoder_decoder_reference import reference_model
from eecompile.student.model import DecoderSpec
from eecompile.student.reference import ReferenceModel
from eecompile.student.student import Student, open_student
from eecompile.verify.captured import check_captured
from eecompile.verify.classifier import verify_classifier
from eecompile.verify.commands import polygraphy_commands
from eecompile.verify.compare import Comparator, find_comparator
from eecompile.verify.criteria import Values, criteria_of
from eecompile.verify.decisions import check_flips, check_node, engine_values, node_rows
from eecompile.verify.device import check_device
from eecompile.verify.exact import check_exact, check_tokens
from eecompile.verify.exits import check_exits, check_modules, exit_math
from eecompile.verify.gates import check_gates
from eecompile.verify.heads import check_small_heads, small_head_logits
from eecompile.verify.loops import check_loops, own_model
from eecompile.verify.parity import Walks, check_parity, check_passes, walk_both
from eecompile.verify.polygraphy_folder import check_polygraphy, run_commands, write_folder
from eecompile.verify.prompts import PARITY_EXTRA, prompt_ids, walked_ids
from eecompile.verify.references import Reference, checkpoint_reference, numpy_reference, read_recorded
from eecompile.verify.report import Check, VerifyReport
from eecompile.verify.rows import Float, ModelRows, Walker
from eecompile.verify.stored import StoredWeights, check_weights, stored_weights
from eecompile.verify.tolerances import ARITHMETIC, BANDS, PARITY, Band, coarsest

Progress = Callable[[str], None]
DEFAULT_TOKENS = 32
RECORDED_NAME = "numpy float32 recorded at build"
ARITHMETIC_ROWS = 64  # the numpy model dequantises every weight again: one short sequence shows its arithmetic


@dataclass(frozen=True)
class _Subject:
    """A bundle that is being verified, and what its engines made of the prompts."""

    bundle: Bundle
    walker: Walker
    compare: Comparator
    walks: list[Walks]
    progress: Progress

    @property
    def precision(self) -> str:
        return self.bundle.manifest.precision

    @property
    def coarsest(self) -> str:
        """What tolerances go by."""
        return coarsest(self.bundle.manifest, self.bundle.backend)

    @property
    def layers(self) -> list[int]:
        return [e.layer for e in self.bundle.manifest.exits]


@dataclass(frozen=True)
class _Evidence:
    """What exit decisions are judged by: rows at the exits for the first tokens of some walks, and a head for them.

    band None: the decisions that differ are counted only.
    """

    label: str
    walks: list[Walks]
    rows: list[ModelRows]
    logits: Callable[[Float], Float]
    band: Band | None


def verify_bundle(
    path: Path, *, checkpoint: Path | None = None, prompts: Path | Sequence[Prompt] | None = None,
    tokens: int = DEFAULT_TOKENS, polygraphy: Path | None = None, backend: str = "auto",
    plugin: Path | None = None, progress: Progress = lambda stage: None,
) -> VerifyReport:  # fmt: skip
    """Check the bundle at `path` against its model.

    checkpoint: the Hugging Face directory it was built from. With torch and transformers the engines are held against
    Hugging Face in float32, without them against the numpy model on the same weights; without a checkpoint only against
    the rows recorded at build. prompts: texts, token ids or a file of them (None: built-in ones). tokens: to generate
    for each prompt, at least two. polygraphy: a folder for what Polygraphy's own command line needs to check each
    graph; its commands then run, too. backend, plugin: as of Bundle.open.
    A check that does not hold is in the report; raises IntegrityError where the bundle is not intact, UsageError for a
    checkpoint or prompts that cannot be used, MissingBackend without Polygraphy where it is asked for.
    """
    progress("hashes")
    bundle = Bundle.open(path, backend=backend, plugin=plugin)
    if polygraphy is not None:
        check_polygraphy(bundle, polygraphy)
    if bundle.manifest.task != c.CAUSAL_LM:
        return verify_classifier(bundle, _hashes(bundle), checkpoint=checkpoint, prompts=prompts, progress=progress)
    check_tokens(tokens)
    ids = prompt_ids(bundle, prompts, tokens)
    full = bundle.session(mode="full")
    for prompt in ids:
        full.generate(prompt, max_new_tokens=tokens)  # refuses a prompt that does not fit before anything runs
    student = None if checkpoint is None else open_student(checkpoint)
    subject, walker = _walked(bundle, ids, progress)
    passes, noise = check_passes(subject.walks, subject.compare)
    checks, references = [_hashes(bundle), passes], [RECORDED_NAME]
    if student is not None:
        checks.append(same := _same_model(bundle, student.spec))
        student = student if same.passed else None
    checks += _recorded(subject, student)
    if student is not None:
        found, names = _against_checkpoint(subject, student)
        checks, references = checks + found, references + names
    said = [engine_values([w.prefill.exits[i] for w in subject.walks]) for i in range(len(subject.layers))]
    rows = node_rows(subject.walks, walker.rows)
    checks.append(check_node(walker, rows))
    checks += check_small_heads(bundle, walker, rows, student, subject.compare) + check_gates(bundle, subject.walks)
    if bundle.manifest.device is not None:
        progress("device graphs")
        device_plan(bundle.files)
        check_engines(bundle.files.path)
        recorded, *_ = read_recorded(bundle.files.path, bundle.manifest)
        checks += check_device(bundle.files.path, bundle.manifest, recorded, subject.compare)
    checks += check_exact(bundle, walker, ids, tokens, said, noise, progress) + check_captured(bundle)
    commands = polygraphy_commands(bundle)
    if polygraphy is not None:
        ran = write_folder(bundle, polygraphy)
        checks += run_commands(ran, polygraphy, progress)
        commands = tuple(command.line for command in ran)
    return VerifyReport(
        bundle.manifest.digest, subject.precision, tuple(references), subject.compare.name, tuple(checks), commands
    )


def _walked(bundle: Bundle, ids: Sequence[list[int]], progress: Progress) -> tuple[_Subject, Walker]:
    walker = Walker(bundle)
    most = 2 * walker.rows + PARITY_EXTRA
    walks = []
    for number, prompt in enumerate(ids, 1):
        progress(f"engines, prompt {number} of {len(ids)}")
        walks.append(walk_both(walker, *walked_ids(bundle, prompt, most)))
    return _Subject(bundle, walker, find_comparator(), walks, progress), walker


def _hashes(bundle: Bundle) -> Check:
    """Opening the bundle checked them; one that is not intact never comes this far."""
    files = bundle.manifest.files
    figures = {"files": len(files), "bytes": sum(info.bytes for info in files.values())}
    return Check("hashes", True, figures, note="every core file has the manifest's size and SHA-256")


def _recorded(s: _Subject, student: Student | None) -> list[Check]:
    """The rows recorded at build: a reference that is always at hand."""
    s.progress("recorded reference")
    ids, source, rows = read_recorded(s.bundle.files.path, s.bundle.manifest)
    walks = [walk_both(s.walker, ids, source)]
    checks = check_parity("recorded", RECORDED_NAME, walks, [rows], s.compare, PARITY[s.coarsest])
    checks += check_exits(exit_math(s.bundle, student), s.layers, [*walks, *s.walks], s.compare)
    if student is None:
        band = BANDS[s.coarsest] if s.precision != "int4" else None
        checks += _decisions(s, _Evidence("recorded", walks, [rows], s.walker.logits, band), None)
    return checks


def _against_checkpoint(s: _Subject, student: Student) -> tuple[list[Check], list[str]]:
    """Everything that needs the checkpoint: the checks and the names of the references."""
    s.progress("weights")
    plain, student = student, student.at_context(s.bundle.manifest.model.context)
    stored, spec = stored_weights(s.bundle.files.path, s.bundle.manifest, student.own_spec)
    tied = {spec.names.head: student.spec.head_weight}
    weights = check_weights(stored, list(spec.shapes()), student.own_store, tied, s.precision)
    s.progress("checkpoint")
    reference = _reference(s, student, plain.spec == student.spec)
    truth = _run(s, reference, s.walks)
    checks = [
        weights,
        *check_loops(s.bundle, student),
        *check_modules(s.bundle, student),
        *check_parity("checkpoint", reference.name, s.walks, truth, s.compare, PARITY[s.coarsest]),
    ]
    quantised = s.precision in c.QUANTISED
    head = ReferenceModel(student.spec, student.store).logits
    band = None if quantised else BANDS[s.coarsest]
    checks += _decisions(s, _Evidence("checkpoint", s.walks, truth, head, band), student)
    if s.precision not in ARITHMETIC or not weights.passed:
        return checks, [reference.name]
    own, name = _against_own_weights(s, student, stored, spec)
    return checks + own, [reference.name, name]


def _reference(s: _Subject, student: Student, plain: bool) -> Reference:
    """plain: the build's context changes nothing in the model. Hugging Face goes by each prompt's length instead."""
    if plain:
        return checkpoint_reference(student, s.layers)
    name = "numpy float32 on the checkpoint (rotated as the build's context wants)"
    return numpy_reference(name, student.reference, s.layers)


def _against_own_weights(
    s: _Subject, student: Student, stored: StoredWeights, spec: DecoderSpec
) -> tuple[list[Check], str]:
    """The engines against the numpy model on the weights that the bundle stores: without the error of quantisation."""
    spec, store = own_model(student, spec, stored)
    model = partial(reference_model, spec, store, cycles=student.cycles)
    reference = numpy_reference("numpy float32 on the bundle's own weights", model, s.layers)
    longest = max(s.walks, key=lambda w: len(w.ids))
    walks = [walk_both(s.walker, longest.ids[:ARITHMETIC_ROWS], longest.source)]
    truth = _run(s, reference, walks)
    checks = check_parity("own weights", reference.name, walks, truth, s.compare, ARITHMETIC[s.coarsest])
    if s.precision in c.QUANTISED:
        head = ReferenceModel(spec, store).logits
        checks += _decisions(s, _Evidence("own weights", walks, truth, head, BANDS[s.coarsest]), student)
    return checks, reference.name


def _run(s: _Subject, reference: Reference, walks: Sequence[Walks]) -> list[ModelRows]:
    rows = []
    for number, walk in enumerate(walks, 1):
        s.progress(f"{reference.name}, prompt {number} of {len(walks)}")
        rows.append(reference.run(walk.ids, walk.source))
    return rows


def _decisions(s: _Subject, evidence: _Evidence, student: Student | None) -> list[Check]:
    """One check an exit: its decisions against those that the evidence makes."""
    checks = []
    policies = s.bundle.files.policy.exits
    for i, math in enumerate(exit_math(s.bundle, student)):
        info = s.bundle.manifest.exits[i]
        if math is None:
            continue
        hidden, confidence = math([rows.hidden[info.layer] for rows in evidence.rows])
        logits = evidence.logits if info.head == c.FULL_HEAD else small_head_logits(s.bundle, info.head)
        expected: Values = {"learned": confidence, **criteria_of(logits(hidden.astype(np.float32)))}
        actual = engine_values([w.prefill.exits[i] for w in evidence.walks])
        checks.append(check_flips(evidence.label, info, policies[i], actual, expected, evidence.band))
    return checks


def _same_model(bundle: Bundle, spec: DecoderSpec) -> Check:
    """That the checkpoint is of the manifest's family and sizes."""
    names = ("family", "layers", "hidden", "heads", "kv_heads", "head_dim", "vocab")
    other = [f"{n} {getattr(spec, n)}, not {getattr(bundle.manifest.model, n)}" for n in names
             if getattr(spec, n) != getattr(bundle.manifest.model, n)]  # fmt: skip
    detail = f"the checkpoint is of another model: {'; '.join(other)}" if other else "of the manifest's sizes"
    return Check("checkpoint", not other, {"different": len(other)}, {"different": "<= 0"}, detail)
