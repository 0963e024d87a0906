"""Decoding one sequence with a launch a step, where the GPU decides at exits (device_step.py); and what fits that.

Tokens, depths and counts are those of the host's decisions: what a graph has decided is taken into account here, after
it, in the order in which the host would have decided it.
"""

import math
from collections.abc import Mapping, Sequence

from eecompile import contract as c
from eecompile.bundle.manifest import Manifest
from eecompile.errors import DeviceError
from eecompile.plugins.conditions import Outcome
from eecompile.runtime.askers import ExitAsker
from eecompile.runtime.decode import Continuation, Decoder, Emitted
from eecompile.runtime.device_step import DeviceSteps, Shape
from eecompile.runtime.gates import ExitGates, choose
from eecompile.runtime.heads import Head
from eecompile.runtime.request import Settings
from eecompile.runtime.rules import ExitRule, with_listeners
from eecompile.runtime.staircase import LoadedGraphs, Staircase

_GATES = {"learned", "fixed", *c.HEAD_CRITERIA}


class ConditionalDecoder(Decoder):
    """A Decoder of one sequence whose steps are graphs. Not thread-safe.

    What a graph is not for goes as ever: sampled tokens, and the passes that verify drafts at a request's end. A step
    that cannot be captured makes the session go as ever from there on, with the reason in `fault`; with `strict` it is
    an error. `head`, `gates`, `layers` as of Decoder.
    """

    def __init__(
        self, head: Head, gates: ExitGates, steps: DeviceSteps, manifest: Manifest, graphs: LoadedGraphs, *,
        strict: bool,
    ) -> None:  # fmt: skip
        super().__init__(head, gates, layers=manifest.model.layers)
        self._steps, self._schedule, self._exits = steps, manifest.schedule, manifest.exits
        self._step_layers = [graphs.segments[step.segment].info.layers for step in manifest.schedule]
        self._away, self._strict = False, strict  # away: what waits is in the GPU's boundaries, not in the host's
        self.fault: DeviceError | None = None

    def step(self, those: Sequence[Continuation]) -> None:
        """As Decoder.step."""
        shape = self._prepared(those)
        if shape is None:
            self._come_home()
            super().step(those)
            return
        self._away = True
        self._walk(those[0], shape)

    def flush(self, those: Sequence[Continuation]) -> None:
        """As Decoder.flush."""
        if any(one.drafts for one in those):
            self._come_home()
        super().flush(those)

    def _prepared(self, those: Sequence[Continuation]) -> Shape | None:
        """What the step is to be run as, None where it goes as ever."""
        if self.fault or len(those) != 1 or not those[0].sampling.greedy:
            return None
        one = those[0]
        if one.stairs.pending and not self._away:
            return None
        asked = tuple(e for step in self._schedule if (e := step.exit) is not None and one.may_exit(e))
        try:
            return self._steps.prepare(one.last, asked)
        except DeviceError as e:
            if self._strict:
                raise
            self.fault = e
            return None

    def _come_home(self) -> None:
        if self._away:
            self._steps.fetch()
            self._away = False

    def _walk(self, one: Continuation, shape: Shape) -> None:
        """Run a step, then note of each of its parts what the GPU has done."""
        one.certain = []
        one.stairs.entered(1)
        one.state.begin(one.stairs.length)
        rules = {e: rule for e in shape.exits if (rule := one.state.rules[e]) is not None}
        self._steps.run(shape, {e: one.state.bounds(rule) for e, rule in rules.items()})
        pool = one.stairs.pool
        for k, step in enumerate(self._schedule):
            one.stairs.went(k, self._step_layers[k])
            pool.passes += 1
            pool.rows += shape.rows[k]
            if step.exit in rules and self._left(one, k, rules[step.exit]):
                return
        decided = self._steps.finished(shape)
        self._verify(one, decided, 0, list(map(math.isfinite, decided.max_prob.tolist())))

    def _left(self, one: Continuation, k: int, rule: ExitRule) -> bool:
        """Whether the token has left by the exit after step k, which the GPU has asked."""
        said = self._steps.exit(rule.exit)
        outcome = said.outcome
        if outcome is Outcome.REFUSED:
            return False
        decided = said.decisions
        token = int(decided.token[0])
        one.state.note(rule, float(decided.max_prob[0]), float(decided.margin[0]), token)
        if outcome is Outcome.DECLINED:
            one.state.declined[self._exits[rule.exit].head] += 1
            return False
        one.leave(Emitted(choose(decided, 0, one.state.position, one.sampling), self._exits[rule.exit].layer), k)
        return True


def unfit(manifest: Manifest, graphs: LoadedGraphs, settings: Settings) -> str | None:
    """Why steps of these settings cannot be graphs that decide, or None."""
    if graphs.branches is None:
        return graphs.unbranched
    if manifest.source is not None:
        return "the model is an encoder-decoder"
    if graphs.cycles:
        return "steps run again by gates of their own"
    if settings.kv != "catch_up":
        return f"the rule for skipped layers is {settings.kv}"
    if manifest.minimum_rows > 1:
        return "the bundle's passes have more rows than wait for them"
    return next((why for rule in open_rules(settings).values() if (why := _unfit_exit(manifest, graphs, rule))), None)


def open_rules(settings: Settings) -> Mapping[int, ExitRule]:
    """The rules of the exits that are asked, by exit."""
    rules = with_listeners(settings.rules or [None] * len(settings.exits), settings.exits)
    return {exit_: rule for exit_, rule in enumerate(rules) if rule is not None}


def conditional_decoder(
    manifest: Manifest, graphs: LoadedGraphs, settings: Settings, stairs: Staircase, askers: Sequence[ExitAsker],
    head: Head, gates: ExitGates, *, strict: bool,
) -> ConditionalDecoder:  # fmt: skip
    """A decoder for settings that fit. Raises DeviceError where the GPU's memory does not suffice."""
    assert graphs.branches is not None
    rules, exact = open_rules(settings), settings.mode == "exact"
    steps = DeviceSteps(graphs.branches, manifest, graphs, stairs, askers, rules, exact=exact)
    return ConditionalDecoder(head, gates, steps, manifest, graphs, strict=strict)


def _unfit_exit(manifest: Manifest, graphs: LoadedGraphs, rule: ExitRule) -> str | None:
    shape = manifest.exits[rule.exit]
    where = f"the exit after layer {shape.layer}"
    if others := sorted(set(shape.gates) - _GATES):
        return f"{where} goes by {others[0]}"
    if graphs.exits[rule.exit].info.layers:
        return f"{where} has a layer of its own"
    if rule.patience is not None or rule.votes or not rule.opens:
        return f"{where} votes for others"
    return None
