"""A decoder's step on a pretended GPU: everything lies on it, nothing waits for it, the numbers are the CPU's."""

from collections import Counter
from collections.abc import Iterator

import pytest
from decoders import images, stepper
from pretend_cuda import CPU, CUDA, pretend_cuda
from torch import Tensor
from torch.nn import functional

from gmtool.reconstruction.settings import Phases
from gmtool.reconstruction.step import ImageBatch
from gmtool.training.micro_batch import choose_micro_batch

# imported here: they ask for CUDA's libraries while they are, which the pretence has none of
pytest.importorskip("diffusers").AutoencoderRAE  # noqa: B018
pytest.importorskip("transformers").ViTModel  # noqa: B018


@pytest.fixture(autouse=True)
def waits() -> Iterator[Counter[str]]:
    with pretend_cuda() as devices:
        yield devices


def pooled(images: Tensor) -> Tensor:
    """Latents (B, 32, 4, 4) without an encoder: means of pixels."""
    return functional.adaptive_avg_pool2d(images.float() / 64 - 2, 4).repeat(1, 11, 1, 1)[:, :32]


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.slow
def test_a_step_waits_for_nothing(micro_batch: int | None, waits: Counter[str]) -> None:
    """The random numbers of a GPU are the CPU's here, as pretended ones are."""
    one, two = (stepper(Phases(0, 0, 0), micro_batch, device, pooled) for device in (CPU, CUDA))
    given = ImageBatch(images().to(CUDA))
    expected = [one.take(ImageBatch(images()), step, 0) for step in range(2)]
    waits.clear()
    on_gpu = [two.take(given, step, 0) for step in range(2)]
    assert not waits
    for here, there in zip(expected, on_gpu, strict=True):
        assert there.record() == pytest.approx(here.record(), rel=1e-3, abs=1e-4)


def test_the_micro_batch_is_found_by_trying() -> None:
    assert choose_micro_batch(stepper(device=CUDA, encode=pooled), "auto", 4, CUDA) == 4
