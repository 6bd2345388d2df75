"""From the word a user gives to ``--device`` to the device that computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from gmtool.errors import UserError
from gmtool.settings import Precision
from gmtool.words import counted


def resolve_device(name: str) -> torch.device:
    """The device of ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises UserError for another word, or a GPU that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", 0) if gpus else torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and not (kind == "cuda" and number.isdecimal())):
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, not {name!r}")
    if kind == "cpu":
        return torch.device("cpu")
    index = int(number or 0)
    if index >= gpus:
        seen = "no GPU that torch can use" if not gpus else counted(gpus, "GPU")
        raise UserError(f"--device {name}: this machine has {seen}; choose --device {'cuda:0' if gpus else 'cpu'}")
    return torch.device("cuda", index)


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The arithmetic of ``--precision`` on a device; ``auto`` is bfloat16 on a GPU that has it, else float32."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def planned_dtype(precision: Precision, gpu: bool) -> torch.dtype:
    """`compute_dtype` of a plan, which knows no more of its device than whether it is a GPU."""
    return compute_dtype(precision, torch.device("cuda" if gpu else "cpu"))


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """The context of arithmetic in which a network is called: autocast to ``precision``, none for float32."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The values (...) on a device; from the CPU to a GPU through pinned memory, so that the copy is asynchronous."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    pinned = values if values.is_pinned() else values.pin_memory()
    return pinned.to(device, non_blocking=True)


def allow_tf32(allowed: bool) -> None:
    """Whether GPUs may round the factors of float32 matrix products to 10 bits of mantissa (TF32)."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
