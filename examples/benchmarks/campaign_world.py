"""The small world of ``campaign.py``: some digits, what the stages make of them, and commands in forked processes."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch

from gmtool.artifacts.decoder_run import open_decoder_run
from gmtool.artifacts.gmm import open_gmm
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.run import open_run
from gmtool.artifacts.safetensors_io import read_tensors
from gmtool.artifacts.samples import open_samples
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.cli.app import main
from gmtool.data.digits import write_digits
from gmtool.errors import UserError
from gmtool.evaluation.sweep_table import read_sweep
from gmtool.tokenizers.rae import load_decoder
from gmtool.training.checkpoint import find_checkpoint

IMAGES, SECONDS, MEMORY = 40, 60, 4 << 30
"""Digits of the world; processor time, and memory beyond what the parent takes, that a command may take."""
CPU = torch.device("cpu")
THESIS = "thesis.txt"
"""A file of the user's beside everything."""


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code, negative for a signal; what it said; whether its time was up."""

    code: int
    said: str
    late: bool = False

    def fault(self, *allowed: int) -> str | None:
        """What is wrong with it, None for nothing. allowed: exit codes."""
        lines = self.said.strip().splitlines() or [""]
        if self.late:
            return "not done in time"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        if "Traceback" in self.said or "internal error" in self.said or "Error ignored" in self.said:
            return lines[-1]
        if self.code not in (allowed or (0, 1, 2)):
            return f"exit code {self.code}: {lines[-1]}"
        if self.code and not lines[-1].startswith("gmtool: error: "):
            return f"exit code {self.code} without a word: {lines[-1]}"
        return None


@dataclass
class Child:
    """A command in a forked process, in ``folder``."""

    arguments: Sequence[str]
    folder: Path
    pid: int = field(init=False)
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder.with_name(f"{self.folder.name}.{random.getrandbits(40):x}.log")
        self.pid = forked(self._run)

    def _run(self) -> int:
        os.chdir(self.folder)
        for stream, target in ((0, os.devnull), (1, os.devnull), (2, str(self.log))):
            os.dup2(os.open(target, os.O_RDWR | os.O_CREAT | os.O_APPEND), stream)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        return main(self.arguments)

    def wait(self, seconds: float = 20.0 * SECONDS) -> Ending:
        """Its end; it is killed, and late, after so many seconds."""
        ends, late = time.monotonic() + seconds, False
        while not (waited := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > ends and not late:
                os.kill(self.pid, signal.SIGKILL)
                late = True
            time.sleep(0.002)
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return Ending(os.waitstatus_to_exitcode(waited[1]), said, late)


def forked(act: Callable[[], int]) -> int:
    """The number of a process that does ``act`` and ends with its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = act()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def words(command: str) -> list[str]:
    """The arguments of a command line."""
    return command.split()


ENCODE = words("encode digits latents.h5 --tokenizer pixels --patch-size 4 --workers 0 --device cpu")
FIT = words("fit-gmm latents.h5 gmm.h5 --modes 4 --em-iterations 5 --device cpu")
TRAIN = words(
    "train latents.h5 run --objective gm-kl --source gmm --model tiny --optimizer muon --ema-power 0.1 --batch-size 8 "
    "--steps 8 --save-every 2 --preview-every 4 --eval-every 4 --eval-num 8 --no-tensorboard --device cpu"
)
SAMPLE = words("sample run samples --num 24 --batch-size 4 --steps 3 --device cpu")
EVAL = words("eval samples --features tokenizer --device cpu")
DISTILL = words(
    "distill run student --batch-size 8 --steps 4 --save-every 2 --preview-every 3 --no-tensorboard --device cpu"
)
SWEEP = words("sweep run sweep --steps 1,2 --num 8 --features tokenizer --device cpu")
TRAIN_DECODER = words(
    "train-decoder digits decoder --tokenizer encoder --image-size 32 --upscale --size tiny --batch-size 4 --steps 4 "
    "--perceptual none --discriminator-weights vit --discriminator-from 1 --adversarial-from 2 --warmup 1 --save-every "
    "2 --keep 1 --preview-every 2 --eval-every 2 --workers 0 --no-tensorboard --device cpu"
)
CHAIN: Mapping[str, tuple[Sequence[str], str]] = {
    "encode": (ENCODE, "latents.h5"),
    "fit-gmm": (FIT, "gmm.h5"),
    "train": (TRAIN, "run"),
    "sample": (SAMPLE, "samples"),
    "eval": (EVAL, "samples/metrics.json"),
    "distill": (DISTILL, "student"),
    "sweep": (SWEEP, "sweep"),
    "train-decoder": (TRAIN_DECODER, "decoder"),
}
"""The stages, each with what it makes."""


def write_networks(folder: Path) -> None:
    """An encoder and the ViT of a discriminator, small, with random weights."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, patch_size=14, image_size=28)).save_pretrained(
        folder / "encoder"
    )
    ViTModel(ViTConfig(**sizes, intermediate_size=32, image_size=16, patch_size=8)).save_pretrained(folder / "vit")


def build(folder: Path) -> Path:
    """Digits, networks, and what the stages make of them, in ``folder``/world."""
    world = folder / "world"
    images, _ = write_digits(folder / "all")
    (world / "digits").mkdir(parents=True)
    for index, image in enumerate(sorted(images.rglob("*.png"))[:: max(1, 1400 // IMAGES)][:IMAGES]):
        (world / "digits" / "ab"[index % 2]).mkdir(exist_ok=True)
        shutil.copy(image, world / "digits" / "ab"[index % 2] / image.name)
    (world / THESIS).write_text("of years")
    write_networks(world)
    for arguments, _ in CHAIN.values():
        ending = Child(arguments, world).wait()
        if ending.code:
            raise SystemExit(f"{' '.join(arguments)}: {ending.said}")
    return world


def copy_of(world: Path, *without: str) -> Path:
    """A copy of the world, without some of its parts, where the last copy was: records hold absolute paths."""
    copy = world.parent / "copy" / "world"
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(world, copy, ignore=lambda _, names: [name for name in names if name in without])
    return copy


def missing_thesis(world: Path) -> str | None:
    """What is wrong where the user's file is not as it was, or something of ours was left beside it."""
    if not (world / THESIS).is_file() or (world / THESIS).read_text() != "of years":
        return "the user's file is gone"
    return None


def digest(*parts: object) -> str:
    """One text for arrays and other values."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.tobytes() + str(part.dtype).encode() if isinstance(part, np.ndarray) else repr(part).encode())
    return sha.hexdigest()


def of_latents(path: Path) -> str:
    with open_latents(path) as file:
        rows = np.arange(len(file))
        small = file.labels, file.flipped, file.mean, file.var, file.classes, file.names(), file.manifest
        return digest(*small, file.patches(rows), file.descriptors(rows))


def of_mixture(path: Path) -> str:
    with open_gmm(path) as file:
        modes, kept = np.arange(len(file)), file.kept(slice(None))
        small = file.weights, file.population, file.cls_weights, file.cls_mean, file.cls_var, file.manifest
        return digest(*small, kept.modes, kept.probabilities, file.patch_mean(modes), file.patch_std(modes))


def of_tensors(path: Path) -> str:
    tensors = read_tensors(path)
    return digest(*(part for name in sorted(tensors) for part in (name, tensors[name].numpy())))


def of_run(path: Path) -> str:
    run = open_run(path)
    checkpoint = find_checkpoint(run.checkpoints, None)
    if checkpoint.passed_over:
        raise UserError(checkpoint.notes[0])
    tensors = (of_tensors(file) for file in sorted(checkpoint.path.glob("*.safetensors")))
    return digest(run.manifest, checkpoint.position, of_tensors(path / "statistics.safetensors"), *tensors)


def of_samples(path: Path) -> str:
    samples = open_samples(path)
    return digest(samples.manifest, samples.images(), of_latents(samples.latents))


def of_decoder(path: Path) -> str:
    manifest = open_decoder_run(path).manifest
    known = manifest.details["tokenizer"]
    network = load_decoder(str(path), CPU, TokenizerSpec(known["name"], known["settings"])).network
    made = (values.numpy() for values in (*network.decoder.state_dict().values(), network.encoder_mean))
    heads = (of_tensors(file) for file in sorted(path.rglob("discriminator*.safetensors")))
    return digest(manifest, network.config, *made, *heads)


def of_sweep(path: Path) -> str:
    return digest(read_sweep(path))


READERS: Mapping[str, Callable[[Path], str]] = {
    "latents.h5": of_latents,
    "gmm.h5": of_mixture,
    "run": of_run,
    "samples": of_samples,
    "sweep": of_sweep,
    "decoder": of_decoder,
}
"""All numbers of an artifact, as one text."""
OF_THE_CLOCK = ("lock", "throughput.jsonl")
"""Files that tell who made a run, and how fast."""


def content_of(path: Path) -> str:
    """What a stage made, comparable between two runs of it: bytes of files whose bytes do not tell the time."""
    if path.suffix == ".h5":
        return READERS["gmm.h5" if path.name == "gmm.h5" else "latents.h5"](path)
    if path.name == "samples":
        return of_samples(path)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return digest(*(part for file in files if file.name not in OF_THE_CLOCK for part in (file.name, file.read_bytes())))


def leftovers(world: Path) -> str | None:
    """Hidden work that nobody resumes any more."""
    hidden = [str(path.relative_to(world)) for path in world.rglob(".*")]
    return f"left {hidden}" if hidden else missing_thesis(world)


def copy_before(world: Path, stage: str) -> Path:
    """A copy of the world before a stage."""
    order, names = list(CHAIN), [output for _, output in CHAIN.values()]
    return copy_of(world, *(Path(name).name for name in names[order.index(stage) :]))


@dataclass(frozen=True)
class Undisturbed:
    """What a stage makes when it is left alone, and how long it takes."""

    content: str
    seconds: float


@cache
def undisturbed(world: Path, stage: str) -> Undisturbed:
    """A stage, left alone."""
    arguments, output = CHAIN[stage]
    copy, began = copy_before(world, stage), time.monotonic()
    Child(arguments, copy).wait()
    took = time.monotonic() - began
    return Undisturbed(content_of(copy / output), took)
