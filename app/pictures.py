"""A person's own pictures: checked, made small enough, and kept in the lab's folder under the hash of their content, or sent with a job."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from starfish_lab import settings
from starfish_lab.errors import ImagesError

KINDS = ("png", "jpg", "jpeg", "webp", "bmp")
LONGEST_SIDE = 1024  # pixels; networks see a few hundred
LARGEST_FILE = 50  # MB, as in app/.streamlit/config.toml
LARGEST_PICTURE = 80  # million pixels, before it is made smaller
LONGEST_SENT = 768  # pixels of a picture that travels in a job's row
LIGHT = 2**18  # bytes: a PNG above them travels as a JPEG
NARROWEST = 4  # times longer than wide: of longer pictures the middle is taken, as networks do


def keep(content: bytes, name: str) -> str:
    """Save a picture and return its number, 64 hex digits. Raises ImagesError with a text to show as it stands.

    What is saved is drawn anew from the pixels: RGB, turned as the camera held it, no side above LONGEST_SIDE, and nothing
    else that the file held (place, time, thumbnails).
    """
    _light_enough(content, name)
    drawn = io.BytesIO()
    _opened(content, name).save(drawn, "PNG", optimize=True)
    number = hashlib.sha256(drawn.getvalue()).hexdigest()
    place = path(number)
    if not place.exists():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_suffix(".partial")
            partial.write_bytes(drawn.getvalue())
            partial.replace(place)
        except OSError as error:
            raise ImagesError(f"{name} could not be kept in {place.parent}: {error.strerror or error}. Make room there and try again.") from None
    return number


def small(content: bytes, name: str) -> bytes:
    """A picture as it travels in a job's row: drawn anew as `keep` does, smaller still, a PNG or a JPEG of some hundred kilobytes.

    Raises ImagesError with a text to show as it stands.
    """
    _light_enough(content, name)
    picture, drawn = _opened(content, name), io.BytesIO()
    picture.thumbnail((LONGEST_SENT, LONGEST_SENT))
    picture.save(drawn, "PNG", optimize=True)
    if len(drawn.getvalue()) > LIGHT:
        drawn = io.BytesIO()
        picture.save(drawn, "JPEG", quality=92)
    return drawn.getvalue()


def path(number: str) -> Path:
    """Where the picture of this number lies. Raises ImagesError for what is no such number."""
    if not re.fullmatch(r"[0-9a-f]{64}", number):
        raise ImagesError("The link names a picture by something other than 64 hex digits. Upload the picture.")
    return settings.home() / "pictures" / f"{number}.png"


def _light_enough(content: bytes, name: str) -> None:
    if len(content) > LARGEST_FILE * 2**20:
        raise ImagesError(f"{name} has {len(content) / 2**20:.0f} MB; expected were {LARGEST_FILE} MB at most. Make it smaller and try again.")


def _opened(content: bytes, name: str) -> Image.Image:
    """The picture in RGB, upright, its middle where it is very long, no side above LONGEST_SIDE."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remark about large pictures; the limit below is the lab's own
            picture = Image.open(io.BytesIO(content))
            if picture.width * picture.height > LARGEST_PICTURE * 1e6:
                raise _too_large(name, f"{picture.width} × {picture.height} pixels")
            picture = _in_colour(ImageOps.exif_transpose(picture))
    except ImagesError:
        raise
    except Image.DecompressionBombError:  # Pillow looks no further than its own limit
        raise _too_large(name, "far too many pixels") from None
    except Exception:  # whatever a decoder makes of a broken file, a text or a film
        raise ImagesError(f"{name} cannot be read as a picture. Expected was a {', '.join(kind.upper() for kind in KINDS)} file.") from None
    wide, high = (min(side, NARROWEST * other) for side, other in (picture.size, picture.size[::-1]))
    if (wide, high) != picture.size:
        picture = ImageOps.fit(picture, (wide, high), Image.Resampling.NEAREST)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return picture


def _in_colour(picture: Image.Image) -> Image.Image:
    """RGB: what is transparent lies on white, and 16 bits of grey become 8."""
    if picture.mode.startswith(("I", "F")):
        scale = 1 / 257 if picture.getextrema()[1] > 255 else 1
        return picture.convert("F").point(lambda value: value * scale).convert("L").convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _too_large(name: str, what: str) -> ImagesError:
    return ImagesError(f"{name} has {what}; expected were {LARGEST_PICTURE} million at most. Make it smaller and try again.")
