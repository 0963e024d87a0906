"""`train exits`: heads, translators and gates on a frozen backbone, from cached hidden states."""

from pathlib import Path
from typing import Any

from eecompile.student.encoder_student import is_encoder
from eecompile_training.config import load_config
from eecompile_training.exit_settings import ExitsConfig
from eecompile_training.rows import Progress
from eecompile_training.train_classifier import train_classifier
from eecompile_training.train_decoder import train_decoder


def train_file(path: Path, *, resume: bool = False, progress: Progress = lambda stage: None) -> dict[str, Any]:
    """Train the exits that the YAML file at `path` asks for; returns a summary. Raises UsageError and its like."""
    config = load_config(path, ExitsConfig)
    train = train_classifier if is_encoder(config.model) else train_decoder
    return train(config, resume=resume, progress=progress)
