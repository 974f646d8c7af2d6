"""From the bytes of a picture to the pixels that a viewer shows: upright, in sRGB, on a white ground.

The first frame counts. Orientation is that of the EXIF data. Colour profiles are converted to sRGB. Transparent pixels
are composited on white. 16-bit grey is divided by 257. What has no agreed range (32-bit integers, floats) is refused.
"""

import io
import math
from functools import cache, lru_cache

from PIL import Image, ImageCms, ImageOps

from spherear.models.config import require

GROUND = (255, 255, 255)  # below transparent pixels
MAX_PIXELS = 50_000_000  # a larger image is a mistake or a decompression bomb; below the limit at which Pillow warns
FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF",
    "WEBP",
)  # fmt: skip
"""What is opened: formats that Pillow decodes itself. Others start programs (EPS: Ghostscript) or are no pictures."""
UNSCALED = {"I": "32-bit integers", "F": "floats"}  # Pillow clips these modes at 255
ORIENTATION = 0x0112  # the EXIF tag
Extent = tuple[int | float, int | float]  # width and height in pixels
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


@cache
def suffixes() -> tuple[str, ...]:
    """The endings of all picture files that are read, in lower case."""
    endings = Image.registered_extensions().items()
    return tuple(sorted(ending for ending, kind in endings if kind in formats()))


@cache
def formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow reads."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def is_picture(name: str) -> bool:
    """Whether a file's name ends like a picture's."""
    return name.lower().endswith(suffixes())


def is_hidden(path: str) -> bool:
    """Whether a part of a path is hidden (`.x`, `._x`) or made by a system (`__MACOSX`, `__pycache__`, `@eaDir`)."""
    return any(
        part.startswith((".", "__MACOSX", "__pycache__", "@eaDir")) for part in path.split("/") if part.strip(".")
    )


def decode_image(content: bytes) -> Image.Image:
    """Bytes -> an RGB image as a viewer shows it. Truncated or too large images, or modes without a range: an error.

    OSError, ValueError or SyntaxError, as Pillow raises them. A file of a format that is not in FORMATS is not opened,
    whatever its name ends in.
    """
    return viewed(_opened(content))


def decode_small(content: bytes, shorter: int) -> tuple[Image.Image, Extent]:
    """As `decode_image`, but a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size -> the image, its width and height.

    Its shorter side keeps at least `shorter` pixels. Width and height are those of the original, scaled: the last
    column and row of pixels may lie beyond them.
    """
    picture, extent = _opened(content), None
    if picture.format in ("JPEG", "MPO") and picture.getexif().get(ORIENTATION, 1) == 1:
        scale = shorter / min(picture.size)
        drafted = picture.draft(None, (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))
        extent = drafted[1][2:] if drafted else None
    seen = viewed(picture)
    return seen, extent or seen.size


def _opened(content: bytes) -> Image.Image:
    """A picture whose pixels are not decoded yet."""
    picture = Image.open(io.BytesIO(content), formats=formats())
    pixels = picture.width * picture.height
    require(pixels <= MAX_PIXELS, f"it has {pixels} pixels; expected at most {MAX_PIXELS}")
    return picture


def viewed(picture: Image.Image) -> Image.Image:
    """The first frame of a picture as a viewer shows it, in RGB."""
    profile = picture.info.get("icc_profile")
    picture = ImageOps.exif_transpose(_eight_bits(picture))
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        ground = Image.new("RGB", picture.size, GROUND)
        return Image.composite(_in_srgb(colours.convert("RGB"), profile), ground, colours.getchannel("A"))
    return _in_srgb(picture, profile)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey in 8 bits; other pictures unchanged. Modes without an agreed range: ValueError."""
    mode = picture.mode
    if mode in SIXTEEN_BITS or (mode == "I" and picture.format == "PNG"):
        require("transparency" not in picture.info, "it has a transparent value of 16 bits; expected one of 8")
        return picture.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    require(mode not in UNSCALED, f"it has mode {mode}, {UNSCALED.get(mode)} without a range; expected 8 or 16 bits")
    return picture


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture in RGB, converted from its colour profile if that is readable and fits."""
    if picture.mode not in ("RGB", "L", "CMYK"):
        picture = picture.convert("RGB")
    transform = _to_srgb(profile, picture.mode) if profile else None
    if transform is not None:
        return ImageCms.applyTransform(picture, transform) or picture
    return picture.convert("RGB")


@lru_cache(maxsize=64)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None for sRGB itself, and for a profile that no viewer could use."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
