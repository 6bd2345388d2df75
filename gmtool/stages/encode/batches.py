"""Images to encoded batches, by one process or several: a batch each in every round, which the first one collects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch

from gmtool.artifacts.latents import to_float16
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.data.images import BadImage, ImageBatch, check_grey, image_batches
from gmtool.distributed import World
from gmtool.errors import UserError
from gmtool.stages.encode.plan import EncodePlan
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.build import build_tokenizer


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """A batch of images, encoded.

    indices (B,): their rows in the set. patches (n, C, H, W) float16 and descriptors (n, D) float32: of their samples,
    n = B times the plan's views. bad: images that cannot be read and are left out.
    """

    indices: np.ndarray
    patches: np.ndarray
    descriptors: np.ndarray
    bad: tuple[BadImage, ...]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The batch as named tensors, to send to another process: the fields, and bad as JSON text, uint8 (m,)."""
        bad = np.frombuffer(json.dumps([asdict(image) for image in self.bad]).encode(), np.uint8)
        arrays = {"indices": self.indices, "patches": self.patches, "descriptors": self.descriptors, "bad": bad.copy()}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> EncodedBatch:
        """The batch whose `tensors` these are."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        bad = tuple(BadImage(**values) for values in json.loads(arrays.pop("bad").tobytes()))
        return cls(**arrays, bad=bad)


def encoded_batches(plan: EncodePlan, spec: TokenizerSpec, done: int, world: World) -> Iterator[EncodedBatch]:
    """The batches after the ``done`` first images, in order, for the first process; none for the others.

    In a round each process encodes a batch; the last round may lack some. Raises UserError for an image that cannot be
    read (unless the plan skips it), and for latents that float16 cannot hold.
    """
    rest, size = plan.rows[done:], plan.batch_size
    starts = range(0, len(rest), size)
    mine = [rest[start : start + size] for start in starts[world.rank :: world.size]]
    tokenizer = build_tokenizer(spec, world.device, plan.precision)
    batches = image_batches(
        plan.images,
        tokenizer.image_size,
        size,
        workers=plan.workers,
        skip_bad=plan.skip_bad,
        rows=np.concatenate([rest[:0], *mine]),
    )
    for _ in starts[:: world.size]:
        batch = next(batches, None)
        for tensors in world.gather({} if batch is None else _encoded(plan, tokenizer, batch).tensors()):
            if tensors:
                yield EncodedBatch.of(tensors)


def _encoded(plan: EncodePlan, tokenizer: Tokenizer, batch: ImageBatch) -> EncodedBatch:
    """A batch, encoded: each image or its mirror image, or one followed by the other, as the plan says."""
    if not len(batch.indices):
        shape = plan.layout.shape
        nothing = np.empty((0, *shape), np.float16), np.empty((0, tokenizer.descriptor_size), np.float32)
        return EncodedBatch(batch.indices, *nothing, batch.bad)
    images, mirrored = torch.from_numpy(batch.images), torch.from_numpy(plan.mirrored[batch.indices])
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    views = [images, images.flip(-1)][: plan.views]
    if plan.grey:
        check_grey(plan.images, batch)
    encoded = [tokenizer.encode(view) for view in views]
    patches, descriptors = (
        torch.stack(parts, dim=1).flatten(0, 1)
        for parts in ([view.patches for view in encoded], [view.descriptors for view in encoded])
    )
    names = [plan.images.names[index] for index in batch.indices]
    whose = names[0] if len(names) == 1 else f"a batch of images from {names[0]} to {names[-1]}"
    if not torch.isfinite(descriptors).all():
        raise UserError(f"the descriptors of {whose} are not finite: encode with --precision float32")
    return EncodedBatch(batch.indices, _stored(patches, whose), descriptors.cpu().numpy(), batch.bad)


def _stored(patches: torch.Tensor, whose: str) -> np.ndarray:
    """Latents as the file stores them, converted where they were computed. Raises UserError as `to_float16` does."""
    stored = patches.half()
    if torch.isfinite(stored).all():
        return stored.cpu().numpy()
    return to_float16(patches.cpu().numpy(), whose)  # which says what is wrong
