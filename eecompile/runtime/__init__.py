"""The runtime: open a bundle, make a session or a batch, generate."""

from eecompile.runtime.batch import Batch
from eecompile.runtime.bundle import Bundle
from eecompile.runtime.request import Request, Stats, Token
from eecompile.runtime.sampling import Sampling
from eecompile.runtime.session import Generation, Session

__all__ = ["Batch", "Bundle", "Generation", "Request", "Sampling", "Session", "Stats", "Token"]
