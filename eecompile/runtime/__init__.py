"""The runtime: open a bundle, make a session, generate."""

from eecompile.runtime.bundle import Bundle
from eecompile.runtime.sampling import Sampling
from eecompile.runtime.session import Generation, Session, Stats, Token

__all__ = ["Bundle", "Generation", "Sampling", "Session", "Stats", "Token"]
