"""The Inception network that FID is defined by, of torch-fidelity: its weights, how they come, and its features.

The weights are TensorFlow's of 2015-12-05, converted by torch-fidelity: one file of 91 MB in torch's hub cache.
torch-fidelity would unpickle any weights file without restriction; here a file is read as plain tensors only, and
torch-fidelity is given a stream that holds those tensors.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gmtool.downloads import download
from gmtool.errors import MachineError, UserError
from gmtool.evaluation.extractors import Described, ExtractorSettings
from gmtool.evaluation.features import Features
from gmtool.evaluation.library import require_torch_fidelity
from gmtool.progress import Progress

FEATURES, LOGITS = "2048", "logits_unbiased"
"""torch-fidelity's names of the layers: features of FID, KID, precision and recall; logits of the Inception score."""

SPATIAL, CHANNELS = "Mixed_6d.branch1x1", 7
"""The layer of sFID's features, ``mixed_6/conv`` in TensorFlow's graph, and how many of its channels count."""

SIZE = 2048
"""D of the pooled features."""


@dataclass(frozen=True)
class InceptionExtractor:
    """The 2048 pooled features, the class logits and the spatial features of the Inception network."""

    network: nn.Module
    device: torch.device
    name: str

    size = SIZE

    def __call__(self, images: Tensor) -> Features:
        """See `Extractor`."""
        seen: list[Tensor] = []
        branch = self.network.get_submodule(SPATIAL)
        handle = branch.register_forward_hook(lambda _module, _given, output: seen.append(output))
        try:
            with torch.inference_mode():
                vectors, logits = self.network(images.to(self.device))
        finally:
            handle.remove()
        return Features(vectors.float().cpu(), logits.float().cpu(), spatial_features(seen[0]).cpu())


def spatial_features(maps: Tensor) -> Tensor:
    """The features of sFID, (B, 2023) float32, from the maps (B, 192, 17, 17) of the layer `SPATIAL`.

    The first 7 channels at each position, channels fastest: as ADM's evaluator flattens ``mixed_6/conv:0`` of
    TensorFlow's graph (Nash et al. 2021, arXiv 2103.03841), so that ``mu_s`` and ``sigma_s`` of its files can be used.
    """
    return maps[:, :CHANNELS].permute(0, 2, 3, 1).flatten(1).float()


def prepare(settings: ExtractorSettings, patience: float | None, progress: Progress) -> str:
    """See `gmtool.evaluation.extractors.Family`."""
    require_torch_fidelity()
    weights = weights_path(settings)
    if settings.inception_weights is not None:
        if not weights.is_file():
            raise UserError(f"--inception-weights {weights} is not a file: leave the flag out to download the weights")
    elif not weights.is_file():
        if patience == 0:
            return f"its weights would be downloaded from {weights_url()} (--features auto: with a time limit)"
        fetch_weights(progress, patience)
    return f"its weights are in {weights}"


def feature_size(_: ExtractorSettings, _described: Described | None) -> int:
    """See `gmtool.evaluation.extractors.Family`."""
    return SIZE


def open_extractor(
    settings: ExtractorSettings, _: Described | None, device: torch.device, progress: Progress
) -> InceptionExtractor:
    """See `gmtool.evaluation.extractors.Family`. Raises UserError for a wrong weights file."""
    import torch_fidelity

    path = weights_path(settings)
    weights = read_weights(path)
    if not weights.published:
        progress.note(f"{path} differs from the published Inception weights: compare with no published figure")
    name = f"Inception v3 ({SIZE} numbers, weights {weights.digest}, torch-fidelity {torch_fidelity.__version__})"
    return InceptionExtractor(build_inception(weights, path, device), device, name)


@dataclass(frozen=True)
class Weights:
    """A state dict on the CPU, and the first 8 digits of the SHA-256 of the file that held it."""

    state: Mapping[str, Tensor]
    digest: str

    @property
    def published(self) -> bool:
        """Whether these are the weights that published figures were computed with."""
        return self.digest == published_digest()


def published_digest() -> str:
    """First 8 digits of the SHA-256 of the published weights, which torch's hub puts in the file name."""
    match = re.search(r"-([0-9a-f]{8})\.pth$", weights_url())
    assert match is not None
    return match.group(1)


def weights_url() -> str:
    """Where torch-fidelity publishes the weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return URL_INCEPTION_V3


def weights_path(settings: ExtractorSettings) -> Path:
    """The file that the user named, or the hub's."""
    return settings.inception_weights or weights_cache()


def weights_cache() -> Path:
    """Where torch's hub, hence torch-fidelity, keeps the downloaded weights; the file may not exist yet."""
    return Path(torch.hub.get_dir()) / "checkpoints" / weights_url().rpartition("/")[2]


def fetch_weights(progress: Progress, seconds: float | None) -> Path:
    """Download the published weights into the cache and return their path.

    seconds: give up when it takes longer; None: wait as long as data keep coming. Raises MachineError after at most
    `gmtool.downloads.CONNECT_SECONDS` of silence, when the time is up, or when the content is not what was published.
    """
    target = weights_cache()
    try:
        download(weights_url(), target, published_digest(), "Inception weights", progress, seconds)
    except OSError as error:  # also URLError, HTTPError and timeouts
        reason = getattr(error, "reason", error)
        raise MachineError(
            f"Inception weights could not be fetched from {weights_url()} ({reason}): give a copy with "
            "--inception-weights FILE, or use --features tokenizer"
        ) from error
    return target


def read_weights(path: Path, wrong: UserError | None = None) -> Weights:
    """Read a file of weights as plain tensors.

    wrong: the error to raise when it is something else; by default that of Inception. Raises OSError when it cannot be
    read.
    """
    wrong = wrong or _wrong_weights(path)
    content = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.load's guesses about files that are no weights
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes provoke
        raise wrong from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise wrong
    return Weights(state, hashlib.sha256(content).hexdigest()[:8])


def as_stream(weights: Weights) -> io.BytesIO:
    """The weights as a stream for torch-fidelity, which would unpickle anything: it holds nothing but tensors."""
    stream = io.BytesIO()
    torch.save(dict(weights.state), stream)
    stream.seek(0)
    return stream


def build_inception(weights: Weights, path: Path, device: torch.device) -> nn.Module:
    """torch-fidelity's Inception: uint8 (B, 3, H, W) -> features (B, 2048) and logits (B, 1008), float32.

    Raises UserError, naming ``path``, when the weights are of another network.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", [FEATURES, LOGITS], feature_extractor_weights_path=as_stream(weights)
        )
    except RuntimeError as error:
        raise _wrong_weights(path) from error
    return network.to(device)


def _wrong_weights(path: Path) -> UserError:
    return UserError(
        f"{path} does not hold the weights of torch-fidelity's Inception: give {weights_url().rpartition('/')[2]}"
    )
