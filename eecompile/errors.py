"""The faults a user can cause or mend. Each says what happened, where, and how to mend it.

The command line prints them without a traceback and exits with `exit_status`; anything else is a bug and
keeps its traceback.
"""


class EECompileError(Exception):
    """A fault outside eecompile's code.

    what: one sentence on what went wrong. where: the file, tensor, option or stage. mend: what to do about it.
    """

    exit_status = 1

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.mend = what, where, mend

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        mend = f"\n  mend: {self.mend}" if self.mend else ""
        return f"{where}{self.what}{mend}"


class CheckFailed(EECompileError):
    """A verification ran and did not hold."""

    exit_status = 1


class UsageError(EECompileError):
    """The request cannot be served as asked: a bad option, prompt, checkpoint or exit list."""

    exit_status = 2


class ContextFull(UsageError):
    """A prompt and what is to follow it do not fit the context the bundle was built for."""


class Uncalibrated(UsageError):
    """Confident mode was asked of an exit that has no matching calibration."""


class MissingBackend(EECompileError):
    """An optional back end, package or tool is not installed."""

    exit_status = 3


class IntegrityError(EECompileError):
    """A bundle is not intact: changed, truncated, missing, unsigned or out of range."""

    exit_status = 4


class DeviceError(EECompileError):
    """A GPU or its driver refused or failed to do something."""

    exit_status = 1


class NumericError(EECompileError):
    """The model computed no usable number (NaN or infinite logits)."""

    exit_status = 1
