"""The runtime: open a bundle, make a session or a batch and generate, or make a classifier and classify."""

from eecompile.runtime.batch import Batch
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.classify import Classification, Classifier, TokenLabel
from eecompile.runtime.request import Request, Stats, Token
from eecompile.runtime.sampling import Sampling
from eecompile.runtime.session import Generation, Session

__all__ = [
    "Batch", "Bundle", "Classification", "Classifier", "Generation", "Request", "Sampling", "Session", "Stats", "Token",
    "TokenLabel",
]  # fmt: skip
