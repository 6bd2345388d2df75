"""Malicious and broken pickles and archives, generated at random; see ``campaign.py``."""

from __future__ import annotations

import io
import random
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

MARK = "gmtool-was-here"
"""What a pickle that is obeyed leaves in the current folder."""


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


PIECES: tuple[bytes, ...] = (
    *(
        b"}",
        b"]",
        b")",
        b"(",
        b"t",
        b"l",
        b"d",
        b"N",
        b"K\x01",
        b"J\xff\xff\xff\x7f",
        b"0",
        b"1",
        b"2",
        b"\x85",
        b"\x86",
    ),
    *(
        b"\x87",
        b"R",
        b"b",
        b"s",
        b"u",
        b"a",
        b"e",
        b"q\x00",
        b"q\x01",
        b"h\x00",
        b"h\x01",
        b"Q",
        b"\x81",
        b"\x93",
        b"o",
    ),
    *(_text("ema"), _text("model"), _text("weights_"), _text(f"touch {MARK}"), _text("posix"), _text("system")),
    *(b"cposix\nsystem\n", b"c__builtin__\neval\n", b"c__builtin__\ngetattr\n", b"cnumpy\ndtype\n"),
    *(b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"),
    *(b"csklearn.mixture._gaussian_mixture\nGaussianMixture\n", b"cnumpy.core.multiarray\n_reconstruct\n"),
    *(b"B\x04\x00\x00\x00abcd", b"\x8b\xff\xff\xff\x7f", b"G\x7f\xf8" + bytes(6), b"Vab\\udc\n", b"L9999L\n"),
)
"""Opcodes with their arguments, sound and unsound."""
CALL = b"cposix\nsystem\n" + _text(f"touch {MARK}") + b"\x85R"


def pickled(rng: random.Random) -> tuple[str, bytes]:
    """A name, and a file that begins as a pickle, or as torch's archive around one."""
    body = b"".join(rng.choice(PIECES) for _ in range(rng.randint(1, 60)))
    if rng.random() < 0.5:
        place = rng.randint(0, len(body))
        body = body[:place] + CALL + body[place:]
    content = rng.choice([b"\x80\x02", b"\x80\x04", b"\x80\x05", b""]) + body + rng.choice([b".", b"", b"s.", b"R."])
    if rng.random() < 0.3:
        content = b"\x80\x02" + rng.choice([b"]", b"(", b")"]) * rng.choice([100, 50_000]) + content
    if rng.random() < 0.4:
        return rng.choice(["file.pkl", "file.pt"]), content
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(rng.choice(["archive/data.pkl", "archive/DATA.PKL", "../data.pkl"]), content)
        file.writestr("archive/byteorder", b"little")
        file.writestr("archive/data/0", bytes(rng.choice([0, 16])))
        file.writestr("archive/version", b"3\n")
    return "file.pt", _damaged(rng, made.getvalue()) if rng.random() < 0.3 else made.getvalue()


def archive(rng: random.Random, images: Path) -> tuple[str, bytes]:
    """A name, and a zip or tar of images among which are members that no sound one has; some are damaged as well."""
    members = [(f"{path.parent.name}/{path.name}", path.read_bytes()) for path in sorted(images.rglob("*.png"))[:6]]
    members += [rng.choice(_odd_members(rng)) for _ in range(rng.randint(0, 3))]
    rng.shuffle(members)
    made = io.BytesIO()
    kind = rng.choice(["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
    if kind == "zip":
        with zipfile.ZipFile(made, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as file:
            for name, content in members:
                file.writestr(name or "x", content)
    else:
        with tarfile.open(fileobj=made, mode=f"w:{kind[4:]}") as file:
            for name, content in members:
                file.addfile(_tar_member(rng, name, len(content)), io.BytesIO(content))
    content = made.getvalue()
    return f"images.{kind}", _damaged(rng, content) if rng.random() < 0.6 else content


def _tar_member(rng: random.Random, name: str, size: int) -> tarfile.TarInfo:
    """A regular member, or now and then a link or a device."""
    member = tarfile.TarInfo(name)
    member.size = size
    if rng.random() < 0.15:
        member.type = rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
        member.linkname, member.size = rng.choice(["/etc/passwd", "../../x", name, "a"]), 0
    return member


def _odd_members(rng: random.Random) -> list[tuple[str, bytes]]:
    png = _png(rng.choice([1, 60_000]), rng.choice([1, 60_000]))
    names = [
        "../../evil.png",
        "/tmp/evil.png",
        "a\\b.png",
        "a/./b.png",
        "ü/ü.png",
        "x" * 300 + ".png",
        "a//b.png",
        "con.png",
    ]
    return [
        *((name, _png(2, 2)) for name in names),
        ("huge.png", png),
        ("zeros.png", bytes(rng.choice([0, 1, 10_000_000]))),
        (
            "dataset.json",
            rng.choice([b"{", b"[]", b'{"labels": 3}', b'{"labels": [["a/0.png", 1e99]]}', b"[" * 50_000]),
        ),
        ("inner.zip", b"PK\x05\x06" + bytes(18)),
        ("text.png", b"no image"),
        ("bomb.gif", b"GIF89a\xff\xff\xff\xff\x00\x00\x00;"),
    ]


def _png(width: int, height: int) -> bytes:
    """A grey PNG that says its size, with the data of one row at most."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(bytes((width + 1) * min(height, 2)))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _damaged(rng: random.Random, content: bytes) -> bytes:
    """The bytes cut somewhere, or some of them changed."""
    if not content:
        return content
    if rng.random() < 0.4:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 3, 30])):
        # headers, and a zip's directory at its end, are where it hurts
        place = rng.choice(
            [
                rng.randrange(len(changed)),
                rng.randrange(min(600, len(changed))),
                -1 - rng.randrange(min(300, len(changed))),
            ]
        )
        changed[place] = rng.randrange(256)
    return bytes(changed)
