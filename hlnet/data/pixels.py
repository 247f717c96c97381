"""Images as a network takes them: upright, opaque, with 8 bits a channel.

Training, evaluation, prediction, grafting, pictures and the page all read images through :func:`plain_image`.
"""

from __future__ import annotations

from functools import cache

from PIL import Image, ImageOps

from hlnet.errors import DataError

#: Formats that are read. Others either need another program (EPS runs Ghostscript) or are no photographs.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
#: What shows through transparent pixels: white.
BACKGROUND = (255, 255, 255)
#: Numbers of bits that integers of more than 8 bits may have been written with.
_DEPTHS = (8, 10, 12, 14, 16, 24, 31)


@cache
def readable_formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that the installed Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def plain_image(image: Image.Image) -> Image.Image:
    """The image in grey (``L``) or colour (``RGB``), as a viewer shows it.

    - It is turned as its EXIF orientation says.
    - Transparent pixels are composed on white.
    - Integers of more than 8 bits are scaled by the smallest of 8, 10, 12, 14, 16, 24 and 31 bits that holds the
      largest of them: cameras write 12 bits into files of 16.
    - Fractions are taken as 0 to 1 where none is above 1, else as 0 to 255.
    - Of an animation, the first frame counts.

    Args:
        image: of any mode that Pillow reads.

    Raises:
        DataError: for negative numbers, fractions above 255, and what is not a number.

    Example:
        >>> plain_image(Image.new("I;16", (1, 1), 4095)).getpixel((0, 0))
        255
        >>> plain_image(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    if image.mode in {"L", "RGB"} and "transparency" not in image.info and not _turned(image):
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _from_integers(image)
    if image.mode == "F":
        return _from_fractions(image)
    if image.mode in {"RGBA", "RGBa", "LA", "La", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        opaque = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(opaque, image).convert("RGB")
    return image if image.mode in {"L", "RGB"} else image.convert("L" if image.mode == "1" else "RGB")


# ---------------------------------------------------------------------- helpers


def _turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation is other than upright; looked up only where there is EXIF at all."""
    has_exif = "exif" in image.info or "Raw profile type exif" in image.info or "XML:com.adobe.xmp" in image.info
    return (has_exif or image.format in {"TIFF", "MPO"}) and image.getexif().get(0x0112, 1) != 1


def _from_integers(image: Image.Image) -> Image.Image:
    low, high = image.convert("I").getextrema()
    if not isinstance(low, int | float) or not isinstance(high, int | float) or low < 0:
        raise DataError(f"its numbers reach down to {low}, and a pixel's are 0 or more; convert it to 8 bits")
    bits = next(depth for depth in _DEPTHS if high < 2**depth)
    return image.convert("I").point(lambda value: value * (255 / (2**bits - 1)) + 0.5).convert("L")


def _from_fractions(image: Image.Image) -> Image.Image:
    import numpy as np

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # also where one is no number
        raise DataError(f"its numbers reach from {low:g} to {high:g}; expected 0 to 1, or 0 to 255")
    return Image.fromarray((values * (255 if high <= 1 else 1) + 0.5).astype(np.uint8))
