"""The errors that a user sees, each one line that names the file or flag and the repair."""


class GmtoolError(Exception):
    """An error whose message is meant for the user; the command line prints it as one line."""

    exit_code = 1


class UserError(GmtoolError):
    """What was asked cannot be done: a wrong flag, path or file, or a combination that makes no sense."""

    exit_code = 2


class NoEffect(UserError):
    """A setting that changes nothing beside the others. setting: its name (`gmtool.settings.Setting.name`)."""

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(message)
        self.setting = setting


class NotFinite(UserError):
    """Samples that came out infinite or as no number."""


class MachineError(GmtoolError):
    """What was asked is sound, but this machine cannot do it now: disk full, no network, a broken installation."""

    exit_code = 1


OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
"""What the libraries of a GPU, or the system, say where memory is not enough; each by an exception of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU's memory, or the machine's, is not enough."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
