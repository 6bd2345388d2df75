"""Description of a file or folder of gmtool: its kind, its provenance, and whether its inputs still match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gmtool.artifacts.decoder_run import TRAINING, WEIGHTS, WEIGHTS_REPAIR, open_decoder_run
from gmtool.artifacts.files import reading
from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.hdf5 import open_hdf5, read_manifest
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.manifest import KINDS, RECORDS, Input, Manifest, file_fingerprint, parse_manifest
from gmtool.artifacts.run import CONFIG, MIXTURE, open_run
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
    manifest, _ = _open(path)
    if manifest.kind == "latents":
        with open_latents(path) as latents:
            latents.verify()
    elif manifest.kind == "gmm":
        with open_gmm(path) as gmm:
            gmm.verify()
    elif manifest.kind == "run":
        run = open_run(path)
        run.statistics()
        _verify_checkpoints(run.checkpoints)
        if (path / MIXTURE).exists():
            verify(path / MIXTURE)
    elif manifest.kind == "decoder":
        _verify_checkpoints(open_decoder_run(path).checkpoints)
        read_tensors(path / WEIGHTS, repair=WEIGHTS_REPAIR)
    elif manifest.kind == "samples":
        samples = open_samples(path)
        if "arr_0" in manifest.arrays:
            samples.images()
        verify(samples.latents)


def open_manifest(path: Path) -> Manifest:
    """The record of anything that gmtool wrote. Raises UserError for anything else."""
    return _open(path)[0]


def _open(path: Path) -> tuple[Manifest, tuple[tuple[str, str], ...]]:
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if (path / TRAINING).is_file():  # beside a config.json, which is diffusers'
        decoder = open_decoder_run(path)
        return decoder.manifest, _checkpoint_facts(decoder.checkpoints)
    if (path / CONFIG).is_file():
        run = open_run(path)
        return run.manifest, _checkpoint_facts(run.checkpoints)
    if (path / MANIFEST).is_file():
        return open_samples(path).manifest, ()
    if (path / SWEEP).is_file():
        record = parse_manifest((path / SWEEP).read_bytes(), path / SWEEP)
        return replace(record, details={}), (("points", f"{len(read_sweep(path).points):,}"),)
    if (path / RECORDS["reconstruction"]).is_file():
        path = path / RECORDS["reconstruction"]
    if path.suffix == ".json" and path.is_file():
        record = parse_manifest(path.read_bytes(), path)
        if record.kind not in ("likelihood", "reconstruction"):
            raise UserError(f"{path} is part of {KINDS[record.kind][0]}: give its folder")
        return record, ()
    if path.is_dir():
        raise UserError(f"{path} is no run, samples or sweep: it holds no {CONFIG}, {MANIFEST} or {SWEEP}")
    if not path.is_file():
        raise UserError(f"{path} is no regular file: give something that gmtool wrote")
    return _open_file(path)


def _checkpoint_facts(folder: Path) -> tuple[tuple[str, str], ...]:
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


def _open_file(path: Path) -> tuple[Manifest, tuple[tuple[str, str], ...]]:
    """A latents file or a mixture, as its record says."""
    advice = "give something that gmtool wrote"
    with open_hdf5(path, advice) as file, reading(path, advice):
        kind = read_manifest(file, path, advice).kind
    if kind == "gmm":
        with open_gmm(path) as gmm:
            return gmm.manifest, (("modes", f"{len(gmm):,}"),)
    with open_latents(path) as latents:
        return latents.manifest, (("samples", f"{len(latents):,}"), ("classes", f"{len(latents.classes):,}"))


def _state(known: Input) -> State:
    """Whether the input's fingerprint, computed or read from its manifest again, still matches."""
    path = Path(known.path)
    if not path.exists():
        # nothing is fetched to look at it; what is local is recorded by its absolute path
        return "on the hub" if known.role in ("decoder", "encoder") and not path.is_absolute() else "missing"
    try:
        return "matches" if known.fingerprint in _fingerprints(known.role, path) else "changed"
    except GmtoolError:
        return "changed"


def _fingerprints(role: str, path: Path) -> Iterable[str]:
    """What the thing of this role at ``path`` may be known by; a run is known by any of its checkpoints' weights."""
    if role == "images":
        images = find_images(path)
        return {images.fingerprint, images.listing}
    if role == "latents":
        with open_latents(path) as latents:
            return {latents.manifest.fingerprint}
    if role == "gmm":
        with open_gmm(path) as gmm:
            return {gmm.manifest.fingerprint}
    if role == "decoder":
        return decoder_fingerprints(path)
    if role == "encoder":
        return {model_record(str(path), "the encoder")["weights"]}
    if path.is_file():  # of another program: weights, statistics, a mixture
        return {file_fingerprint(path)}
    return weight_fingerprints(path)


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
