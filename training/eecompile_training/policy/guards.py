"""What keeps training from ending where every token leaves at once, or none does."""

from dataclasses import dataclass

from eecompile_training.policy.settings import GuardsConfig


def cost_weight(weight: float, ramp: int, step: int) -> float:
    """The weight of costs at step `step` (from 0): from near nothing up to `weight` in `ramp` steps."""
    return weight * min(1.0, (step + 1) / ramp) if ramp else weight


@dataclass
class CollapseGuard:
    """Watches steps. low, still: how many in a row had too little quality, or no group that differs."""

    config: GuardsConfig
    low: int = 0
    still: int = 0

    def check(self, quality: float, skipped: float, *, finite: bool) -> str | None:
        """Why training is to stop after a step, or None. quality: mean Q of its rollouts. skipped: share of groups that
        taught nothing. finite: whether the gates still are."""
        self.low = self.low + 1 if quality < self.config.quality else 0
        self.still = self.still + 1 if skipped >= 1 else 0
        if not finite:
            return "the gates are not finite any more: lower update.lr"
        if self.low >= self.config.patience:
            return (
                f"mean quality was below {self.config.quality:g} for {self.low} steps: gates leave too early. Lower "
                "reward.weight, or raise guards.minimum_depth, reward.ramp or update.beta"
            )
        if self.still >= self.config.patience:
            return (
                f"for {self.still} steps all rollouts of each prompt were worth the same: gates do not explore any "
                "more. Raise guards.entropy or reference.temperature, or give other prompts"
            )
        return None
