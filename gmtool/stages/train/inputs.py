"""Where the batches of a run come from: rows of the latents file, or images that are encoded as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gmtool.artifacts.gmm import GmmFile
from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.run import LatentStatistics
from gmtool.data.fraction import part_of_data
from gmtool.data.image_loader import open_images
from gmtool.data.latent_loader import LatentBatch, latent_batches
from gmtool.data.mode_statistics import ModeFrames
from gmtool.distributed import World
from gmtool.stages.train.config import TrainConfig
from gmtool.tokenizers.build import build_tokenizer
from gmtool.training.batches import BatchBuilder, known_modes
from gmtool.training.checkpoint import Position
from gmtool.training.loss import Batch


@dataclass(frozen=True)
class TrainingData:
    """What a run is trained on. raw: the latents of the steps from one on, in the order of a seed."""

    feed: BatchBuilder
    raw: Callable[[int, int], Iterator[LatentBatch]]

    def batches(self, at: Position) -> Iterator[Batch]:
        """The batches of the steps after a position."""
        seed = at.seed(self.feed.config.seed)
        return self.feed.batches(self.raw(seed, at.step), at.step, seed)


def open_data(
    latents: LatentsFile,
    gmm: GmmFile | None,
    config: TrainConfig,
    statistics: LatentStatistics,
    frames: ModeFrames | None,
    world: World,
) -> TrainingData:
    """The data of a resolved run, of each batch this process's share.

    Raises UserError for images that do not go with the latents file.
    """
    assert config.batch_size is not None  # resolved
    size, stop, workers = config.batch_size, config.steps, config.workers
    share, classes = world.rows(size), len(latents.classes)
    if config.images is None:
        part = part_of_data(latents, config.fraction, config.seed)
        known = known_modes(gmm, config, part)
        feed = BatchBuilder(latents.labels, classes, known, frames, statistics, config, world.device)
        return TrainingData(
            feed, lambda seed, start: latent_batches(latents, size, seed, start, stop, workers, part, share)
        )
    tokenizer = build_tokenizer(latents.tokenizer, world.device, config.precision)
    source = open_images(config.images, latents, tokenizer, config.flip)
    feed = BatchBuilder(source.labels, classes, known_modes(gmm, config), frames, statistics, config, world.device)
    return TrainingData(feed, lambda seed, start: source.batches(size, seed, start, stop, workers, share))
