"""Small pictures of images as a network sees them, to lie beside figures."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from starfish_lab.models.network import Preprocessing

SIDE = 96  # pixels of the longer side, at most
QUALITY = 80


def shown(pixels: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """A network's input (C, H, W) with its normalisation undone."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return Image.fromarray(((pixels.cpu() * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def thumbnail(pixels: Tensor, preprocessing: Preprocessing) -> str:
    """The same at most SIDE pixels large, as base64 of a JPEG."""
    picture, file = shown(pixels, preprocessing), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(file, "JPEG", quality=QUALITY)
    return base64.b64encode(file.getvalue()).decode()
