"""The runtime: open a bundle, make a session and generate, or make a classifier and classify."""

from eecompile.runtime.bundle import Bundle
from eecompile.runtime.classify import Classification, Classifier, TokenLabel
from eecompile.runtime.sampling import Sampling
from eecompile.runtime.session import Generation, Session, Stats, Token

__all__ = [
    "Bundle", "Classification", "Classifier", "Generation", "Sampling", "Session", "Stats", "Token", "TokenLabel",
]  # fmt: skip
