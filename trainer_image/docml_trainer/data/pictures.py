"""Pictures: what an encoder returns for a `datasets.Image` -> the file that is stored -> the pixels that a model gets.

A file is stored as it is, anything else as a PNG, and each is read once before it is stored. Pillow comes with the image's requirements.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from docml_trainer.errors import DataError, PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")  # not EPS, say, for which Pillow starts another program
MAX_PIXELS = 89_478_485  # Pillow's own limit, beyond which it suspects a file made to fill the memory
EXPECTED = "a picture: a file's path or bytes, a PIL image, or a uint8 array [height, width, 3] or [height, width]"
_EIGHT_BITS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})  # of a channel, or fewer

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Picture:
    """A readable picture: the file that is stored, and the sha256 of its pixels, whatever kind of file holds them."""

    content: bytes
    digest: bytes


def decode_picture(content: bytes) -> Array:
    """uint8[3, height, width] of a stored file: red, green and blue, turned as its EXIF says. PictureError if it cannot be read."""
    with _explained():
        return np.asarray(_decode(_open(content))).transpose(2, 0, 1)


def read_pictures(value: Any) -> Any:
    """EXPECTED, also in (nested) lists, as Picture; anything else comes back as it is. PictureError names the file that cannot be read."""
    if isinstance(value, list | tuple):
        return [read_pictures(inner) for inner in value]
    path = Path(value) if isinstance(value, str | Path) else None
    with _explained(path.name if path else None):
        content = path.read_bytes() if path else _content(value)
        if content is None:
            return value
        image = _open(content)
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # MPO: a camera's JPEG with its preview
            raise PictureError(f"found {image.n_frames} pictures in one file; expected one (return them as a list)")  # type: ignore[attr-defined]
        pixels = _decode(image)
        digest = hashlib.sha256(f"{pixels.height} {pixels.width}\n".encode())
        digest.update(pixels.tobytes())
        return Picture(content, digest.digest())


def _content(value: Any) -> bytes | None:
    """The file that is stored of bytes, of an array or of a PIL image, whose pixels are taken as they are; None for anything else."""
    from PIL import Image

    if isinstance(value, bytes):
        return value
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or not value.size or (value.ndim != 2 and value.shape[2:] != (3,)):
            return None
        value = Image.fromarray(value)
    if not isinstance(value, Image.Image):
        return None
    file = io.BytesIO()
    (value if value.mode in ("1", "L", "RGB") else _as_rgb(value)).save(file, "PNG", icc_profile=None)
    return file.getvalue()


def _open(content: bytes) -> "Image":
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise PictureError(f"found no picture; expected one of {', '.join(FORMATS)}") from None
    if image.width * image.height > MAX_PIXELS:
        raise PictureError(
            f"found {image.width} × {image.height} pixels; expected at most {MAX_PIXELS:,} (return a smaller picture)"
        )
    return image


def _decode(image: "Image") -> "Image":
    """The opened file's pixels, red, green and blue."""
    from PIL import ExifTags, ImageOps

    image.load()
    if image.getexif().get(ExifTags.Base.Orientation) is not None:
        image = ImageOps.exif_transpose(image)
    return _as_rgb(image)


def _as_rgb(image: "Image") -> "Image":
    if image.mode not in _EIGHT_BITS:  # converted, 16 bits would be cut off at 255
        raise PictureError(
            f"found a picture of mode {image.mode}; expected 8 bits a channel (convert it in encode_data)"
        )
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def _explained(file: str | None = None) -> Iterator[None]:
    """Turn whatever Pillow raises about a damaged file into a PictureError."""
    try:
        yield
    except PictureError as error:
        error.file = error.file or file
        raise
    except MemoryError:
        raise
    except ImportError as error:
        raise DataError(
            f"a feature is a datasets.Image, and Pillow cannot be imported here ({error}): "
            "install it in the image (pip install pillow), or declare an Array3D and return arrays"
        ) from error
    except Exception as error:
        raise PictureError(f"the picture cannot be read: {type(error).__name__}: {error}", file) from error
