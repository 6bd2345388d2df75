"""Description of a file or folder of gmtool: its kind, its provenance, and whether its inputs still match."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from gmtool.artifacts.decoder_run import TRAINING, WEIGHTS, WEIGHTS_REPAIR, DecoderRun, open_decoder_run
from gmtool.artifacts.files import reading
from gmtool.artifacts.gmm import GmmFile, open_gmm
from gmtool.artifacts.hdf5 import open_hdf5, read_manifest
from gmtool.artifacts.latents import LatentsFile, open_latents
from gmtool.artifacts.manifest import KINDS, RECORDS, Input, Manifest, file_fingerprint, parse_manifest
from gmtool.artifacts.run import CONFIG, MIXTURE, RunFolder, open_run
from gmtool.artifacts.safetensors_io import read_tensors
from gmtool.artifacts.samples import MANIFEST, open_samples
from gmtool.artifacts.sweep import MANIFEST as SWEEP
from gmtool.data.image_sets import find_images
from gmtool.errors import GmtoolError, UserError
from gmtool.evaluation.sweep_table import read_sweep
from gmtool.tokenizers.pretrained import model_record
from gmtool.tokenizers.rae import decoder_inputs
from gmtool.training.checkpoint import NOT_WHOLE, REPAIR, cut_short, list_checkpoints

State = Literal["matches", "changed", "missing", "on the hub"]

Facts = tuple[tuple[str, str], ...]
"""What else there is to say of an artifact, as pairs of a name and text."""

Opened = tuple[Manifest, Facts]
"""The record of an artifact, and facts."""


@dataclass(frozen=True)
class InputState:
    """One input, and whether its fingerprint still matches."""

    input: Input
    state: State


@dataclass(frozen=True)
class Description:
    """An artifact: its record, the state of its inputs, and what else there is to say, as (name, text)."""

    path: Path
    manifest: Manifest
    inputs: tuple[InputState, ...]
    facts: tuple[tuple[str, str], ...]


def describe(path: Path) -> Description:
    """Describe anything with a manifest (`gmtool.artifacts.manifest.KINDS`). Raises UserError for anything else."""
    manifest, facts = _open(path)
    return Description(path, manifest, tuple(InputState(used, _state(used)) for used in manifest.inputs), facts)


def verify(path: Path) -> None:
    """Read everything in an artifact: a latents file, a mixture, a run, a decoder or samples; of others the record.

    Raises UserError, naming the file, unless all of it is what was written. What an older version wrote without
    checksums is held against its fingerprint and its statistics; of its weights only the format is checked.
    """
    artifact = ARTIFACTS[_kind(path)]
    artifact.open(path)
    artifact.verify(path)


def open_manifest(path: Path) -> Manifest:
    """The record of anything that gmtool wrote. Raises UserError for anything else."""
    return _open(path)[0]


def _open(path: Path) -> Opened:
    return ARTIFACTS[_kind(path)].open(path)


def _kind(path: Path) -> str:
    """The kind by which ``path`` is opened. Raises UserError for what gmtool cannot have written."""
    if not path.exists():
        raise UserError(f"{path} does not exist")
    for kind, record in RECORDS.items():
        if (path / record).is_file():
            return kind
    if path.is_dir():
        raise UserError(f"{path} is no run, samples or sweep: it holds no {CONFIG}, {MANIFEST} or {SWEEP}")
    if not path.is_file():
        raise UserError(f"{path} is no regular file: give something that gmtool wrote")
    if path.suffix == ".json":
        return _kind_of_record(path)
    advice = "give something that gmtool wrote"
    with open_hdf5(path, advice) as file, reading(path, advice):
        return "gmm" if read_manifest(file, path, advice).kind == "gmm" else "latents"


def _kind_of_record(path: Path) -> str:
    """The kind of a record that is looked at without its folder. Raises UserError where that is needed."""
    kind = parse_manifest(path.read_bytes(), path).kind
    if kind not in ("likelihood", "reconstruction"):
        raise UserError(f"{path} is part of {KINDS[kind][0]}: give its folder")
    return kind


def _open_latents(path: Path) -> Opened:
    with open_latents(path) as latents:
        return latents.manifest, (("samples", f"{len(latents):,}"), ("classes", f"{len(latents.classes):,}"))


def _open_gmm(path: Path) -> Opened:
    with open_gmm(path) as gmm:
        return gmm.manifest, (("modes", f"{len(gmm):,}"),)


def _verify_file(open_file: Callable[[Path], LatentsFile | GmmFile], path: Path) -> None:
    with open_file(path) as file:
        file.verify()


def _open_trained(open_folder: Callable[[Path], RunFolder | DecoderRun], path: Path) -> Opened:
    trained = open_folder(path)
    return trained.manifest, _checkpoint_facts(trained.checkpoints)


def _verify_run(path: Path) -> None:
    run = open_run(path)
    run.statistics()
    _verify_checkpoints(run.checkpoints)
    if (path / MIXTURE).exists():
        verify(path / MIXTURE)


def _verify_decoder(path: Path) -> None:
    _verify_checkpoints(open_decoder_run(path).checkpoints)
    read_tensors(path / WEIGHTS, repair=WEIGHTS_REPAIR)


def _open_samples(path: Path) -> Opened:
    return open_samples(path).manifest, ()


def _verify_samples(path: Path) -> None:
    samples = open_samples(path)
    if "arr_0" in samples.manifest.arrays:
        samples.images()
    verify(samples.latents)


def _open_sweep(path: Path) -> Opened:
    record = parse_manifest((path / SWEEP).read_bytes(), path / SWEEP)
    return replace(record, details={}), (("points", f"{len(read_sweep(path).points):,}"),)


def _open_reconstruction(path: Path) -> Opened:
    return _open_record(path / RECORDS["reconstruction"] if path.is_dir() else path)


def _open_record(path: Path) -> Opened:
    _kind_of_record(path)
    return parse_manifest(path.read_bytes(), path), ()


def _verify_nothing(_: Path) -> None:
    pass


def _checkpoint_facts(folder: Path) -> Facts:
    """The steps of a run's checkpoints, and those that are not whole."""
    steps = ", ".join(f"{checkpoint.step:,}" for checkpoint in list_checkpoints(folder))
    damaged = tuple(("checkpoint", f"{path} {NOT_WHOLE}") for path in cut_short(folder))
    return (("checkpoints", steps or "none yet"), *damaged)


def _verify_checkpoints(folder: Path) -> None:
    """Read all checkpoints of a run. Raises UserError, naming the file, unless they are what was written."""
    for path in cut_short(folder):
        raise UserError(f"{path} {NOT_WHOLE}: {REPAIR}")
    for checkpoint in list_checkpoints(folder):
        for file in sorted(checkpoint.path.glob("*.safetensors")):
            read_tensors(file, repair=REPAIR)


@dataclass(frozen=True)
class Artifact:
    """A row: how an artifact is opened, and how all of it is read; of some there is nothing beside the record."""

    open: Callable[[Path], Opened]
    verify: Callable[[Path], None] = _verify_nothing


ARTIFACTS: Mapping[str, Artifact] = {
    "latents": Artifact(_open_latents, partial(_verify_file, open_latents)),
    "gmm": Artifact(_open_gmm, partial(_verify_file, open_gmm)),
    "run": Artifact(partial(_open_trained, open_run), _verify_run),
    "samples": Artifact(_open_samples, _verify_samples),
    "sweep": Artifact(_open_sweep),
    "decoder": Artifact(partial(_open_trained, open_decoder_run), _verify_decoder),
    "reconstruction": Artifact(_open_reconstruction),
    "likelihood": Artifact(_open_record),
}
"""A row for each of `gmtool.artifacts.manifest.KINDS`."""


def _state(known: Input) -> State:
    """Whether the input's fingerprint, computed or read from its manifest again, still matches."""
    path, role = Path(known.path), ROLES.get(known.role, OTHER)
    if not path.exists():
        # nothing is fetched to look at it; what is local is recorded by its absolute path
        return "on the hub" if role.fetched and not path.is_absolute() else "missing"
    try:
        return "matches" if known.fingerprint in role.fingerprints(path) else "changed"
    except GmtoolError:
        return "changed"


def _images_fingerprints(path: Path) -> Iterable[str]:
    images = find_images(path)
    return images.fingerprint, images.listing


def _own_fingerprint(path: Path) -> Iterable[str]:
    return (open_manifest(path).fingerprint,)


def _encoder_fingerprint(path: Path) -> Iterable[str]:
    return (model_record(str(path), "the encoder")["weights"],)


def decoder_fingerprints(decoder: Path) -> Iterator[str]:
    """Fingerprints of a decoder: of its weights, and that of its record, by which earlier versions knew it."""
    for used in decoder_inputs(str(decoder)):
        yield used.fingerprint
    if (decoder / TRAINING).is_file():
        yield open_decoder_run(decoder).manifest.fingerprint


def weight_fingerprints(run: Path) -> Iterator[str]:
    """Fingerprints of a run's files of weights, one read after another: the last checkpoint's averages come first."""
    for checkpoint in reversed(list_checkpoints(open_run(run).checkpoints)):
        for name in reversed(checkpoint.weights()):
            yield file_fingerprint(checkpoint.path / name)


def _other_fingerprints(path: Path) -> Iterable[str]:
    """Of a run, or of a file of another program: weights, statistics, a mixture."""
    return (file_fingerprint(path),) if path.is_file() else weight_fingerprints(path)


@dataclass(frozen=True)
class Role:
    """A row: the fingerprints that an input of a role may be known by, and whether it may be on the hub."""

    fingerprints: Callable[[Path], Iterable[str]]
    fetched: bool = False


ROLES: Mapping[str, Role] = {
    "images": Role(_images_fingerprints),
    "latents": Role(_own_fingerprint),
    "gmm": Role(_own_fingerprint),
    "decoder": Role(decoder_fingerprints, fetched=True),
    "encoder": Role(_encoder_fingerprint, fetched=True),
}
"""The roles of inputs that are known by something else than their weights, or their file, alone."""
OTHER = Role(_other_fingerprints)
"""Every other role; a run is known by any of its checkpoints' weights."""
