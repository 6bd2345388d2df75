"""The errors that a user sees, each one line that names the file or flag and the repair."""

import errno


def install(extra: str) -> str:
    """How to install an extra of gmtool, which the package index does not have, for messages."""
    return f"run pip install '.[{extra}]' in the clone of gmtool"


class GmtoolError(Exception):
    """An error whose message is meant for the user; the command line prints it as one line."""

    exit_code = 1


class UserError(GmtoolError):
    """The user's request is impossible: a wrong flag, path or file, or a combination that makes no sense."""

    exit_code = 2


class NoEffect(UserError):
    """A setting that changes nothing beside the others. setting: its name (`gmtool.settings.Setting.name`)."""

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(message)
        self.setting = setting


class NotFinite(UserError):
    """Generated samples that are infinite or NaN."""


class MachineError(GmtoolError):
    """The request is valid, but this machine cannot serve it now: disk full, no network, a broken installation."""

    exit_code = 1


FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file is larger than is allowed here (ulimit -f)",
}
"""The system's errors where disk space is not enough, in words."""

OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
"""Messages of GPU libraries and of the system when memory runs out, each in an exception of its own type."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that the GPU's or the machine's memory is exhausted."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
