"""Whether two sets of images were compressed alike: JPEG against PNG of the same pictures is a distance by itself."""

from __future__ import annotations

from gmtool.data.image_headers import Headers, read_headers
from gmtool.evaluation.references import ImagesReference, Reference, pictures_of

SHRINK = 2
"""Images that are resized by this factor or more lose the artefacts of their compression."""


def compression_note(images: Reference, reference: Reference, side: int) -> str | None:
    """A warning where one of two sets is of JPEGs of about ``side`` pixels, and the other is not; else None."""
    sets = images, pictures_of(reference)
    lossy = [_is_lossy(pictures, side) for pictures in sets]
    if lossy[0] == lossy[1] or sets[1] is None:
        return None
    first, second = sets if lossy[0] else sets[::-1]
    assert first is not None and second is not None
    return (
        f"{first.path} holds JPEGs and {second.path} does not: compression alone moves the Fréchet distance and the "
        "other figures; compare images stored without loss (PNG), or compressed alike"
    )


def _is_lossy(images: Reference | None, side: int) -> bool:
    if not isinstance(images, ImagesReference):
        return False
    headers: Headers = read_headers(images.images, images.rows)
    return headers.lossy and headers.size is not None and min(headers.size) < SHRINK * side
