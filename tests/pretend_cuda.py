"""A GPU that is none: tensors that say they lie on cuda:0, refuse what a GPU refuses, and compute on the CPU.

Unlike torch's fake tensors it needs no driver for backward passes and generators, and the numbers are real, so code
whose flow depends on them runs too. Inside `pretend_cuda()`

- ``device="cuda"`` and ``.to("cuda")`` give a `Gpu` tensor; ``.cpu()`` gives its numbers back;
- an operation on tensors of two devices raises WrongDevice, as do ``.numpy()`` and a generator of the other device;
- what would make the host wait for the device is counted, with the line of gmtool that asks for it.

It knows no memory, streams, kernels, or forward-mode derivatives. Below Python all of it is on the CPU.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MEMORY = 8 << 30
WAITS: Counter[str] = Counter()
"""What would have waited for the device: "kind at file:line", and how often."""

aten = torch.ops.aten
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Operations whose indices may lie on the host."""
NO_SCALARS = {aten.cat.default, aten.stack.default}
"""Operations that do not take a number from the host beside tensors of the device."""
WAITING = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten._local_scalar_dense.default}
READING = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
"""Methods by which the host reads numbers."""

_plain_to = Tensor.to


class WrongDevice(RuntimeError):
    """What CUDA would refuse."""


def _line() -> str:
    """The innermost line of gmtool that is running."""
    frames = [frame for frame in traceback.extract_stack() if "/gmtool/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/gmtool/')[2]}:{frames[-1].lineno}" if frames else "outside"


def _wait(kind: str) -> None:
    WAITS[f"{kind} at {_line()}"] += 1


class Gpu(Tensor):
    """Numbers on the CPU, ``numbers``, that say they are on a GPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> Gpu:
        made = Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device="cpu",
        )
        made.numbers = numbers
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, **_: Any) -> str:
        return f"Gpu({self.numbers!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = Gpu(self.numbers.detach().clone()).requires_grad_(self.requires_grad)
        memo[id(self)] = copy_made = (
            torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        )
        return copy_made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name, first = dict(kwargs or {}), getattr(func, "__name__", ""), args[0] if args else None
        if isinstance(first, Gpu):
            if name in ("numpy", "__array__", "pin_memory"):
                raise WrongDevice(f"{name} of a tensor on cuda:0 ({_line()})")
            if name in READING:
                _wait(name)
                return func(first.numbers.detach(), *args[1:], **kwargs)
            if name == "new_tensor":
                _wait(name)
                return Gpu(torch.tensor(*args[1:], **{"dtype": first.dtype, **kwargs, "device": CPU}))
            if name in ("cpu", "cuda"):
                return _move(first, CPU if name == "cpu" else CUDA, non_blocking=False)
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        _expect_one_device(func, args, kwargs)
        if func in WAITING:
            _wait(func.name())
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        plain_args, plain_kwargs = tree_map(
            lambda leaf: leaf.numbers if isinstance(leaf, Gpu) else leaf, (args, kwargs)
        )
        moved = tree_map(_on_gpu, func(*plain_args, **plain_kwargs))
        return return_and_correct_aliasing(func, args, kwargs, moved)


def _on_gpu(value: Any) -> Any:
    return Gpu(value) if isinstance(value, Tensor) and not isinstance(value, Gpu) else value


def _expect_one_device(func: Any, args: Any, kwargs: Any) -> None:
    if func is aten.copy_.default:
        return
    given = list(args)
    if func in INDEXED and isinstance(args[0], Gpu):
        given.pop(1)
    tensors = [leaf for leaf in tree_flatten((given, kwargs))[0] if isinstance(leaf, Tensor)]
    beside = [tensor for tensor in tensors if not isinstance(tensor, Gpu) and (tensor.dim() or func in NO_SCALARS)]
    if beside:
        raise WrongDevice(f"{func} on cuda:0 and cpu: {[(type(e).__name__, *e.shape) for e in tensors]} ({_line()})")


class _Across(torch.autograd.Function):
    """A copy to the other device, with its derivative."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return x.numbers.detach().clone() if isinstance(x, Gpu) else Gpu(x.detach().clone())

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        return gradient.numbers if isinstance(gradient, Gpu) else Gpu(gradient)


def _move(x: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
    if (device.type == "cuda") == isinstance(x, Gpu):
        return x
    if device.type == "cpu" or not non_blocking:
        _wait(f"copy to {device.type}")
    return _Across.apply(x) if x.requires_grad else _Across.forward(None, x)


def _to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`; a method of the class, not of a mode, which other threads would not see."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for argument in args:
        if isinstance(argument, Tensor):
            device, dtype = argument.device, argument.dtype
        elif isinstance(argument, torch.dtype):
            dtype = argument
        elif isinstance(argument, (str, torch.device)):
            device = argument
    if device is not None:
        # Module.to passes non_blocking by its place
        x = _move(
            x,
            torch.device(device),
            bool(kwargs.get("non_blocking", False)) or any(argument is True for argument in args),
        )
    with torch._C.DisableTorchFunctionSubclass():
        return x if dtype in (None, x.dtype) else _plain_to(x, dtype=dtype)


class PretendedGenerator(torch.Generator):
    """A generator that says where it is; its numbers are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> PretendedGenerator:
        made = super().__new__(cls)
        made.place = CUDA if torch.device(device).type == "cuda" else CPU
        return made

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    def manual_seed(self, seed: int) -> PretendedGenerator:
        super().manual_seed(seed)
        return self


class _Factories(TorchFunctionMode):
    """Functions that are told a device, or given a generator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        stream = kwargs.get("generator")
        if isinstance(stream, PretendedGenerator):
            like = next((leaf.device for leaf in tree_flatten(args)[0] if isinstance(leaf, Tensor)), CPU)
            if stream.device.type != (wanted or like).type:
                raise WrongDevice(f"a generator on {stream.device} for {wanted or like} ({_line()})")
        if wanted is None or wanted.type != "cuda":
            kwargs.pop("pin_memory", None)  # needs a driver
            return func(*args, **kwargs)
        if func.__name__ in ("tensor", "as_tensor", "asarray"):
            _wait(f"{func.__name__} on the device")
        return tree_map(_on_gpu, func(*args, **{**kwargs, "device": CPU}))


def _grouped(original: Callable[..., Any]) -> Callable[..., Any]:
    """Groups of tensors for fused optimizers, under the device that they say."""

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        return {
            (next(argument.device for part in parts for argument in part if isinstance(argument, Tensor)), dtype): (
                parts,
                indices,
            )
            for (_, dtype), (parts, indices) in original(lists, with_indices).items()
        }

    return grouped


class _NoGradient:
    """In place of inference mode, which allows no views of such tensors."""

    def enter(self: Any) -> None:
        self.instead = torch.no_grad()
        self.instead.__enter__()

    def leave(self: Any, *error: Any) -> None:
        self.instead.__exit__(*error)


@contextmanager
def pretend_cuda() -> Iterator[Counter[str]]:
    """Within it there is a GPU, cuda:0. Yields the waits for it, empty at first."""
    WAITS.clear()

    def nothing(*_: Any, **__: Any) -> None:
        return None

    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_name": lambda *_: "a pretended GPU",
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "get_device_properties": lambda *_: SimpleNamespace(total_memory=1 << 20),  # what a trial leaves free, 5 %
        "empty_cache": nothing,
        "synchronize": lambda *_: _wait("synchronize"),
        "set_device": nothing,
        "is_current_stream_capturing": lambda: False,
    }
    autocast, group = torch.autocast, torch._C._group_tensors_by_device_and_dtype
    checks = [name for name in vars(torch.optim.Optimizer) if name.endswith("graph_capture_health_check")]
    with (
        mock.patch.multiple(torch.cuda, **cuda),
        mock.patch.multiple(torch.optim.Optimizer, **dict.fromkeys(checks, nothing)),
        mock.patch.object(torch, "Generator", PretendedGenerator),
        mock.patch.object(torch, "autocast", lambda _device, *args, **kwargs: autocast("cpu", *args, **kwargs)),
        mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", _grouped(group)),
        mock.patch.object(Tensor, "to", _to),
        mock.patch.object(Tensor, "pin_memory", lambda x, *_: x),
        mock.patch.object(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True),
        mock.patch.multiple(torch.inference_mode, __enter__=_NoGradient.enter, __exit__=_NoGradient.leave),
        _Factories(),
    ):
        yield WAITS
