"""An open bundle: checked files, loaded graphs, and sessions over them."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eecompile import contract as c
from eecompile.bundle.gates import gate_inputs
from eecompile.bundle.manifest import ExitPolicy, Manifest
from eecompile.bundle.ranges import calibrated_thresholds, confident_fault, matching_calibrations, thresholds_fault
from eecompile.bundle.read import BundleFiles, Integrity, read_bundle
from eecompile.engines.ort import processors, use_threads
from eecompile.errors import Uncalibrated, UsageError
from eecompile.runtime.askers import ExitAsker
from eecompile.runtime.backends import choose_backend, load_graphs
from eecompile.runtime.batch import Batch, run_all
from eecompile.runtime.classifier_rules import check_mode, confident_rules, granularity_of
from eecompile.runtime.classify import Classifier, check_task
from eecompile.runtime.heads import Head, heads_by_name
from eecompile.runtime.labels import ClassRule
from eecompile.runtime.modules import LayerAsker
from eecompile.runtime.plan import PASS_ROWS, pass_rows
from eecompile.runtime.request import Limits, Request, Settings, whole
from eecompile.runtime.rules import ExitRule
from eecompile.runtime.sampling import Sampling
from eecompile.runtime.session import Session
from eecompile.runtime.staircase import LoadedGraphs
from eecompile.runtime.text import TextCodec
from eecompile.runtime.texts import TextEncoder
from eecompile.schema import Thresholds

DEFAULT_SLOTS = 8


@dataclass(frozen=True)
class Bundle:
    """A bundle ready to run. Thread-safe: make one session a thread.

    bundle = Bundle.open("build/demo/bundle")
    session = bundle.session(mode="exact")
    for token in session.generate("The capital of France is", max_new_tokens=32):
        print(token.text, end="")
    """

    files: BundleFiles
    graphs: LoadedGraphs
    text: TextCodec | None
    threads: int
    backend: str = "onnxruntime"
    decision: str = "auto"

    @classmethod
    def open(
        cls, path: str | Path, *, threads: int | None = None, integrity: Integrity = "hash", key: Path | None = None,
        backend: str = "auto", plugin: Path | None = None, decision: str = "auto",
    ) -> "Bundle":  # fmt: skip
        """Check and load the bundle at `path`.

        threads: of the process-wide pool (default: the processors this process may use). integrity: "hash" checks
        every core file's SHA-256, "size" only sizes. key: refuse what this key did not sign. backend: what runs the
        graphs: onnxruntime, on the CPU; tensorrt, the engines that were built on this machine; cuda, ONNX Runtime on a
        GPU; auto: tensorrt where there are engines and a GPU, else onnxruntime. plugin: the exit decision's library for
        engines that call it, unless `make plugin` made it in this checkout. decision: who decides at exits of engines;
        pinned: the host, by a flag that it waits for; conditional: the GPU, which goes a whole step down in one launch
        (what cannot be decided so is refused by `session`; batches, sampled tokens and SLED are the host's); auto:
        the GPU where it can.
        Raises IntegrityError, UsageError, MissingBackend.
        """
        files = read_bundle(Path(path), integrity=integrity, key=key)
        count = processors() if threads is None else threads
        use_threads(count)
        text = TextCodec(files.path / "tokenizer") if files.manifest.tokenizer else None
        chosen = choose_backend(backend, files)
        graphs = load_graphs(chosen, files, hashed=integrity == "hash", plugin=plugin, decision=decision)
        return cls(files, graphs, text, count, chosen, decision)

    @property
    def manifest(self) -> Manifest:
        """What the bundle is."""
        return self.files.manifest

    def session(
        self, *, mode: str = "full", pending_cap: int | None = None, minimum_depth: int | None = None,
        budget: int | None = None, thresholds: Mapping[int, Thresholds | None] | None = None, kv: str | None = None,
    ) -> Session:  # fmt: skip
        """A session for one sequence at a time.

        mode: full, confident or exact. pending_cap: tokens that may wait (at most the bundle's). minimum_depth:
        layers every token runs, at least the policy's. budget: layer-rows a request may spend, at most the policy's.
        thresholds: by exit layer, in place of the policy's (None closes the exit); confident mode takes only what the
        calibration allows, drafts of exact mode may be anything. kv: the rule for skipped layers, catch_up, or in
        confident mode another of the bundle's (default: the policy's).
        Raises Uncalibrated, UsageError.
        """
        settings = self.settings(
            mode=mode, pending_cap=pending_cap, minimum_depth=minimum_depth, budget=budget, thresholds=thresholds, kv=kv
        )
        return Session(self.manifest, self.graphs, self.text, settings, self.askers(), self.decision)

    def batch(
        self, *, slots: int | None = None, mode: str = "full", pending_cap: int | None = None,
        minimum_depth: int | None = None, budget: int | None = None,
        thresholds: Mapping[int, Thresholds | None] | None = None, kv: str | None = None,
    ) -> Batch:  # fmt: skip
        """A batch of up to `slots` sequences that run side by side: at most the bundle's, by default 8 of them.

        The rest is as in `session`, for requests that do not say otherwise. Raises Uncalibrated, UsageError.
        """
        self._check_generates()
        slots = min(DEFAULT_SLOTS, self.manifest.slots) if slots is None else slots
        if not 1 <= slots <= self.manifest.slots:
            mend = f"build with --batch {slots}" if slots > 0 and self.manifest.source is None else ""
            raise UsageError(f"a batch of {slots} is not from 1 to the bundle's {self.manifest.slots}", mend=mend)
        settings = partial(
            self.settings, mode=mode, pending_cap=pending_cap, minimum_depth=minimum_depth, budget=budget,
            thresholds=thresholds, kv=kv,
        )  # fmt: skip
        each_pass = pass_rows(self.files.profiles)
        askers = self.askers(slots, slots=slots, each_pass=each_pass)
        return Batch(self.manifest, self.graphs, self.text, settings, askers, slots=slots, each_pass=each_pass)

    def generate_many(
        self, prompts: Iterable[str | Sequence[int]], *, slots: int | None = None, mode: str = "full",
        kv: str | None = None, max_new_tokens: int | None = None, sampling: Sampling | None = None,
        stop: Collection[int] | None = None,
    ) -> Iterator[Request]:  # fmt: skip
        """Continue every prompt, `slots` at a time, and yield each request when it is done (`request.number` counts the
        prompts from 0). Prompts are drawn as slots fall free.

        Raises as `batch`, and for a prompt that cannot be served; a sequence that fails ends with `request.error`.
        """
        batch = self.batch(slots=slots, mode=mode, kv=kv)
        return run_all(batch, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop)

    def settings(
        self, *, mode: str = "full", pending_cap: int | None = None, minimum_depth: int | None = None,
        budget: int | None = None, thresholds: Mapping[int, Thresholds | None] | None = None, kv: str | None = None,
    ) -> Settings:  # fmt: skip
        """What `session` and `batch` run requests by. Raises as they do."""
        self._check_generates()
        if mode not in c.MODES:
            raise UsageError(f"there is no mode {mode!r}", mend=f"modes: {', '.join(c.MODES)}")
        cap = self.manifest.pending_cap if pending_cap is None else whole(pending_cap, "pending_cap")
        if not 1 <= cap <= self.manifest.pending_cap:
            raise UsageError(f"pending cap {cap} is not from 1 to {self.manifest.pending_cap}")
        depth, budget = self._limits(minimum_depth, budget)
        kv = self._kv_rule(mode, kv)
        rules = [] if mode == "full" else self._rules(mode, thresholds or {}, depth, kv)
        return Settings(mode, rules, Limits(cap=cap, budget=budget), self.manifest.exits, kv)

    def classifier(
        self, mode: str = "full", *, granularity: str | None = None, compaction: bool = True, truncate: bool = False,
        minimum_depth: int | None = None, budget: int | None = None,
        thresholds: Mapping[int, Thresholds | None] | None = None,
    ) -> Classifier:  # fmt: skip
        """A classifier of texts, for bundles of encoders.

        mode: full or confident. granularity: what leaves a batch on its own, "sentence" (a text) or, where each token
        has a label, "token"; None: as calibrated. compaction: what has left is not computed any more (off: computed
        and thrown away, for comparison). truncate: cut texts off that are too long, instead of refusing them.
        minimum_depth, budget, thresholds: as of `session`; the budget prices each text at full depth.
        Raises Uncalibrated, UsageError.
        """
        check_task(self.manifest)
        check_mode(mode)
        kind = granularity_of(self.files, granularity)
        depth, budget = self._limits(minimum_depth, budget)
        rules: list[ClassRule | None] = [None] * len(self.manifest.exits)
        if mode == "confident":
            rules = confident_rules(self.files, kind, thresholds or {}, depth)
        encoder = TextEncoder(self.manifest, self.text, truncate=truncate)
        return Classifier(
            self.manifest, self.graphs, encoder, rules, per_token=kind == "token", compaction=compaction, budget=budget
        )

    def askers(self, rows: int = 1, *, slots: int = 1, each_pass: float = PASS_ROWS) -> list[ExitAsker]:
        """The exits' adapters and gates, each over up to `rows` rows at once; those with a layer of their own are about
        the sequences in the `slots` of one pool, whose rows they have to see (Staircase.watch). each_pass: as of
        Pool."""
        size, infos = self.manifest.model.hidden, self.manifest.exits
        found: list[ExitAsker] = []
        for i, (engine, chosen) in enumerate(zip(self.graphs.exits, self.files.policy.exits, strict=True)):
            weights = gate_inputs(chosen, infos[i], size)
            if engine.info.layers:
                found.append(LayerAsker(engine, self.manifest, i, weights, slots, each_pass))
            else:
                found.append(ExitAsker(engine, infos, i, size, rows, weights))
        return found

    def heads(self, rows: int) -> dict[str, Head]:
        """The model's head, "full", and the small ones by name, each over up to `rows` rows at once."""
        return heads_by_name(self.manifest, self.graphs, rows)

    def _check_generates(self) -> None:
        if self.manifest.task != c.CAUSAL_LM:
            raise UsageError("this bundle classifies texts", mend="use `bundle.classifier()`")

    def _limits(self, minimum_depth: int | None, budget: int | None) -> tuple[int, int | None]:
        """A request may be stricter than the policy, never laxer."""
        policy = self.files.policy
        depth, layers = whole(minimum_depth or 0, "minimum_depth"), self.manifest.model.layers
        if not 0 <= depth <= layers:
            raise UsageError(f"minimum depth {depth} is not from 0 to the model's {layers} layers")
        if budget is not None and whole(budget, "budget") < 1:
            raise UsageError(f"budget {budget} is not a positive number of layer-rows")
        budgets = [b for b in (policy.budget, budget) if b is not None]
        return max(policy.minimum_depth, depth), min(budgets, default=None)

    def _kv_rule(self, mode: str, kv: str | None) -> str:
        rule = kv or (self.files.policy.kv if mode == "confident" else "catch_up")
        if rule not in c.KV_RULES:
            raise UsageError(f"there is no K/V rule {rule!r}", mend=f"rules: {', '.join(c.KV_RULES)}")
        if mode == "exact" and rule != "catch_up":
            raise UsageError(
                f"exact mode verifies with the full model's keys and values, and {rule} does not keep them",
                mend="leave the rule to exact mode (catch_up), or use mode confident",
            )
        if rule not in self.manifest.kv_rules:
            raise UsageError(f"the bundle has no graphs for {rule}", mend=f"build with --kv catch_up,{rule}")
        return rule

    def _rules(
        self, mode: str, overrides: Mapping[int, Thresholds | None], depth: int, kv: str
    ) -> list[ExitRule | None]:
        exits = self._overridden(mode, overrides, kv)
        if mode == "confident":
            self._check_calibrated(exits, depth, kv)
        rules: list[ExitRule | None] = []
        for i, chosen in enumerate(exits):
            thresholds = chosen.confident if mode == "confident" else chosen.draft
            closed = thresholds is None or chosen.layer < depth
            schedule = self.manifest.exits[i].schedule
            rules.append(None if closed else ExitRule.of(i, chosen.layer, thresholds or {}, schedule))
        return rules

    def _overridden(self, mode: str, overrides: Mapping[int, Thresholds | None], kv: str) -> list[ExitPolicy]:
        infos = {info.layer: info for info in self.manifest.exits}
        field = "confident" if mode == "confident" else "draft"
        for layer, thresholds in overrides.items():
            if layer not in infos:
                raise UsageError(f"there is no exit at layer {layer}", mend=f"exits: {sorted(infos)}")
            if thresholds is None:
                continue
            if reason := thresholds_fault(thresholds, infos[layer], self.manifest.classes):
                raise UsageError(f"exit {layer}: {reason}")
        return [
            e.model_copy(update={field: overrides[e.layer]}) if e.layer in overrides else e
            for e in self._exits_for(mode, kv)
        ]

    def _exits_for(self, mode: str, kv: str) -> list[ExitPolicy]:
        """The policy's exits; for another K/V rule than the policy's, with the thresholds calibrated for that."""
        policy = self.files.policy
        if mode != "confident" or kv == policy.kv:
            return policy.exits
        matching = matching_calibrations(self.manifest, policy, self.files.calibrations, kv)
        chosen = calibrated_thresholds(matching[0]) if matching else [None] * len(policy.exits)
        return [e.model_copy(update={"confident": t}) for e, t in zip(policy.exits, chosen, strict=True)]

    def _check_calibrated(self, exits: list[ExitPolicy], depth: int, kv: str) -> None:
        policy, calibrations = self.files.policy, self.files.calibrations
        if self.manifest.exits and not matching_calibrations(self.manifest, policy, calibrations, kv):
            raise Uncalibrated(
                f"no calibration of these exits for {self.manifest.precision} and {kv} allows any of them",
                mend=f"run `eecompile calibrate BUNDLE --data FILE{'' if kv == 'catch_up' else f' --kv {kv}'}`, "
                "or use mode exact, whose drafts need none",
            )
        changed = policy.model_copy(update={"exits": exits, "minimum_depth": depth})
        fault = confident_fault(self.manifest, changed, calibrations, kv)
        if fault:
            raise Uncalibrated(fault, mend="choose thresholds inside the calibrated range, or calibrate at more risk")
