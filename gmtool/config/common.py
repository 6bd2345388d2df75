"""Types of settings that several stages share."""

from __future__ import annotations

from typing import Annotated, Literal

from gmtool.config.option import Option

Precision = Literal["auto", "float32", "bfloat16", "float16"]

Device = Annotated[
    str, Option("Where to compute: auto (the first GPU, else the CPU), cpu, cuda or cuda:N.", metavar="DEVICE")
]
Compile = Annotated[
    bool, Option("Compile the network's blocks (torch.compile): a slower start, then faster; needs a C++ compiler.")
]
Seed = Annotated[int, Option("Seed of every random number.", metavar="N", minimum=0)]
Decoder = Annotated[
    str | None,
    Option(
        "Hub id or local folder of an AutoencoderRAE, or a decoder's .pt file of RAE or MM-FM, that turns dinov2 "
        "latents into images (extra: rae). Default: none, which leaves them latents.",
        metavar="ID|FOLDER|FILE",
    ),
]
