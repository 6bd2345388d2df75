"""The settings of the network, as flags, in manifests and in presets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from gmtool.errors import UserError
from gmtool.nn import model_names
from gmtool.settings import Option, Settings, flag

COMPONENTS = 8
"""K of a mixture head where --components does not give it; GMFlow's."""


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """The network and its head; `gmtool.nn.build.architecture_for` makes an architecture of them."""

    TITLE: ClassVar[str] = "Network"

    model: Annotated[
        str | None,
        Option(
            "A DiT of this size, or, with DH-, a DiTDH, whose wide shallow head suits latents of many channels. "
            "Default: tiny on a CPU, B on a GPU.",
            choices=model_names,
        ),
    ] = None
    patch_size: Annotated[
        int,
        Option(
            "Patch size of the network: side, in latent positions, of the square that makes a token (encode "
            "--patch-size is another one: it counts pixels).",
            metavar="N",
            minimum=1,
        ),
    ] = 1
    blocks: Annotated[
        Literal["auto", "classic", "modern"],
        Option("classic: LayerNorm, GELU. modern: RMSNorm, SwiGLU, RoPE. auto: modern for DH-, as published."),
    ] = "auto"
    qk_norm: Annotated[bool, Option("Normalise queries and keys (QK-norm).")] = False
    components: Annotated[
        int | None,
        Option(f"Number of components K of the mixture head (gm-kl). Default: {COMPONENTS}.", metavar="K", minimum=1),
    ] = None
    constant_std: Annotated[
        float | None,
        Option(
            "Fixed standard deviation of the components over the velocity (gm-kl). Default: learned.",
            metavar="STD",
            minimum=1e-4,
        ),
    ] = None
    spectral: Annotated[
        int,
        Option(
            "Also learn the noise spectrum that the switch sample --spectral draws with (gm-kl), by transporting this "
            "many leading axes of the mixture: all channels if they are few, 1 of 768. 0: off.",
            metavar="AXES",
            minimum=0,
        ),
    ] = 0

    def model_on(self, gpu: bool) -> str:
        """The name of the network, which by default depends on whether it is trained on a GPU."""
        return self.model or ("B" if gpu else "tiny")

    def components_of(self, mixture: bool) -> int:
        """K of the head: 0 where the objective predicts no mixture.

        Raises UserError for settings of a mixture where none is predicted.
        """
        if mixture:
            return self.components or COMPONENTS
        for name in ("components", "constant_std", "spectral"):
            if getattr(self, name):
                raise UserError(
                    f"{flag(name)} has no effect, as this objective predicts no mixture: remove the flag, or use "
                    "--objective gm-kl"
                )
        return 0

    def resolved(self, mixture: bool, gpu: bool) -> NetworkSettings:
        """The settings with the defaults that depend on objective and device; components are None without a mixture.

        Raises UserError as `components_of` does.
        """
        return replace(self, model=self.model_on(gpu), components=self.components_of(mixture) or None)
