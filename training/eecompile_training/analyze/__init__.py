"""What early exit can do for a checkpoint, measured before anything is trained or built (`eecompile analyze`)."""

from eecompile_training.analyze.analyze import analyze_files

__all__ = ["analyze_files"]
