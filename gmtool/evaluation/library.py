"""torch-fidelity, of which an installation may have none, or one that cannot be used: what is missing, in one line."""

from __future__ import annotations

from gmtool.errors import MachineError

REPAIR = "run `pip install --upgrade torch torchvision torch-fidelity`, all in one command"


def torch_fidelity_fault() -> str | None:
    """Why torch-fidelity cannot be used, with the repair; None where it can."""
    import torch

    try:
        import torch_fidelity
    except ModuleNotFoundError as error:  # itself, or the torchvision that it needs
        return f"{(error.name or 'torch_fidelity').replace('_', '-')} is not installed: {REPAIR}"
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError, OSError or worse
        return (
            f"torch-fidelity or torchvision does not match torch {torch.__version__} "
            f"({type(error).__name__}: {' '.join(str(error).split())}): {REPAIR}"
        )
    version = torch_fidelity.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < (0, 4):
        return f"torch-fidelity {version} swaps precision and recall: {REPAIR}"
    return None


def require_torch_fidelity() -> None:
    """Raise MachineError, with the repair, where torch-fidelity cannot be used."""
    fault = torch_fidelity_fault()
    if fault is not None:
        raise MachineError(fault)
