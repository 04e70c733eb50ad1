"""A person's own pictures: checked, made small enough, and kept in the lab's folder under the hash of their content."""

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


def keep(content: bytes, name: str) -> str:
    """Save a picture and return its number, 64 hex digits. Raises ImagesError with a text to show as it stands.

    What is saved is drawn anew from the pixels: RGB, turned as the camera held it, no side above LONGEST_SIDE, and nothing
    else that the file held (place, time, thumbnails).
    """
    if len(content) > LARGEST_FILE * 2**20:
        raise ImagesError(f"{name} has {len(content) / 2**20:.0f} MB; expected were {LARGEST_FILE} MB at most. Make it smaller and try again.")
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


def path(number: str) -> Path:
    """Where the picture of this number lies. Raises ImagesError for what is no such number."""
    if not re.fullmatch(r"[0-9a-f]{64}", number):
        raise ImagesError("The link names a picture by something other than 64 hex digits. Upload the picture.")
    return settings.home() / "pictures" / f"{number}.png"


def _opened(content: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remark about large pictures; the limit below is the lab's own
            picture = Image.open(io.BytesIO(content))
            if picture.width * picture.height > LARGEST_PICTURE * 1e6:
                size = f"{picture.width} × {picture.height} pixels"
                raise ImagesError(f"{name} has {size}; expected were {LARGEST_PICTURE} million at most. Make it smaller and try again.")
            picture = ImageOps.exif_transpose(picture).convert("RGB")
    except ImagesError:
        raise
    except Exception:  # whatever a decoder makes of a broken file, a text or a film
        raise ImagesError(f"{name} cannot be read as a picture. Expected was a {', '.join(kind.upper() for kind in KINDS)} file.") from None
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return picture
