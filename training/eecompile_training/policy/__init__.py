"""`train policy`: GRPO on the exit gates of a compiled bundle, with what its passes cost where it runs."""

from eecompile_training.policy.train import train_file

__all__ = ["train_file"]
