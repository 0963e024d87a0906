"""The memory that a build takes on its device: weights, caches, and what passes need beside them."""

from dataclasses import dataclass

from eecompile.bench.cost_model import Setting
from eecompile.student.model import DecoderSpec


@dataclass(frozen=True)
class Memory:
    """Bytes. caches: of every slot at full context. scratch: the largest of one prefill pass of all slots, whose rows
    are alive together, and the logits of a decoding pass. limit: the device's (0: unknown). Not counted: what the
    system, its driver and the libraries of the back end take."""

    weights: float
    caches: float
    scratch: float
    limit: int

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.caches + self.scratch

    @property
    def fits(self) -> bool | None:
        """Whether it is within the limit; None where that is unknown."""
        return self.total <= self.limit if self.limit else None


def memory_needed(
    spec: DecoderSpec, setting: Setting, *, weights: float, cached: float, slots: int, value: float, limit: int
) -> Memory:
    """weights: bytes of all. cached: bytes of keys and values of one token in all layers. value: of an activation.

    Caches that are not updated in place are there twice.
    """
    length = setting.context + setting.slack
    rows = slots * min(setting.prefill_rows, setting.context)
    widths = 2 * spec.hidden + max(
        (spec.heads + 2 * spec.kv_heads) * spec.head_dim, (1 + spec.gated) * spec.intermediate + spec.intermediate
    )
    mask = rows * length * max(1, spec.heads // spec.kv_heads) * value
    logits = slots * (setting.cap + 1) * spec.vocab * 4 * 2
    return Memory(
        weights=weights,
        caches=cached * length * slots * (2 if setting.copies else 1),
        scratch=max(rows * widths * value + mask, logits),
        limit=limit,
    )
