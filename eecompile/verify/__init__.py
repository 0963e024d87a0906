"""Verification: does a bundle compute its model, and do its modes keep their promises?"""

from eecompile.runtime.prompts import Prompt, read_prompts
from eecompile.verify.report import Check, VerifyReport
from eecompile.verify.verify import verify_bundle

__all__ = ["Check", "Prompt", "VerifyReport", "read_prompts", "verify_bundle"]
