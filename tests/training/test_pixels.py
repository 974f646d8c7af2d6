"""The pixels of pictures as any viewer shows them: orientation, transparency, modes, profiles, frames."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from spherear.training.data.pixels import GROUND, decode_image, decode_small, is_hidden, is_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(mode="RGB"):
    """Four quarters of 8 x 8 pixels: red, green; blue, white."""
    image = Image.new("RGB", (16, 16), WHITE)
    for corner, colour in (((0, 0), RED), ((8, 0), GREEN), ((0, 8), BLUE)):
        image.paste(colour, (*corner, corner[0] + 8, corner[1] + 8))
    return image.convert(mode)


def stored(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def corners(picture):
    """Colours in the middle of the four quarters, rounded to the extremes."""
    assert picture.mode == "RGB"
    return [tuple(255 * (value > 127) for value in picture.getpixel(xy)) for xy in ((4, 4), (12, 4), (4, 12), (12, 12))]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_upright(orientation, kind):
    """The stored pixels are turned so that the orientation in the EXIF data turns them back."""
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}.get(orientation)  # fmt: skip
    turned = quarters() if undo is None else quarters().transpose(Image.Transpose[undo])
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = stored(turned, kind, exif=exif)
    assert corners(decode_image(content)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 0, 255)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_transparency_lies_on_white_whatever_is_below(mode, hidden):
    ground = Image.new("RGBA", (16, 16), (*hidden, 0))
    ground.paste((0, 0, 0, 255), (0, 0, 8, 16))
    ground.paste((0, 0, 0, 128), (8, 8, 16, 16))
    image = ground.convert("LA").convert("RGBA") if mode == "LA" else ground
    image = image.convert(mode) if mode != "PA" else image
    content = stored(image.convert("RGBA") if mode == "RGBa" else image)
    picture = decode_image(content)
    assert picture.getpixel((4, 4)) == (0, 0, 0)
    assert picture.getpixel((12, 4)) == GROUND
    assert picture.getpixel((12, 12)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_colour_lies_on_white(kind):
    image = quarters().convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    place = image.getpixel((4, 4))  # red becomes transparent
    assert corners(decode_image(stored(image, kind, transparency=place))) == [WHITE, GREEN, BLUE, WHITE]


def test_a_transparent_colour_of_rgb_and_grey_lies_on_white():
    assert corners(decode_image(stored(quarters(), transparency=RED))) == [WHITE, GREEN, BLUE, WHITE]
    grey = Image.new("L", (16, 16), 10)
    grey.paste(200, (8, 0, 16, 16))
    assert decode_image(stored(grey, transparency=10)).getpixel((4, 4)) == WHITE
    assert decode_image(stored(grey, transparency=10)).getpixel((12, 4)) == (200, 200, 200)


def test_sixteen_bits_are_divided_by_257():
    values = np.arange(256, dtype=np.uint16).repeat(4).reshape(32, 32) * 257
    for kind in ("PNG", "TIFF"):
        found = np.asarray(decode_image(stored(Image.fromarray(values), kind)))
        assert np.array_equal(found, np.repeat((values // 257).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)), "mode I, 32-bit integers without a range"),
        (Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)), "mode F, floats without a range"),
    ],
)
def test_what_has_no_range_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        decode_image(stored(image, "TIFF"))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGB", "BMP"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF")],
)
def test_other_modes_are_what_pillow_shows(mode, kind):
    image = quarters("L").convert("1") if mode == "1" else quarters(mode)
    content = stored(image, kind)
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(np.asarray(decode_image(content)), np.asarray(expected))


def test_lab_is_converted_or_says_why_not():
    """Newer versions of Pillow convert it."""
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.applyTransform(quarters(), ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    found, reason = [], ""
    try:
        found = corners(decode_image(stored(image, "TIFF")))
    except ValueError as error:
        reason = str(error)
    assert "LAB" in reason or found == [RED, GREEN, BLUE, WHITE]


def wide_gamut():
    """A profile with red and green exchanged: sRGB's columns in another order, so that a mistake is plain."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    content = bytes(content).replace(b"s\x00R\x00G\x00B", b"o\x00t\x00h\x00e\x00r"[:7]).replace(b"sRGB", b"othr")
    red, green = content.index(b"rXYZ"), content.index(b"gXYZ")
    swapped = bytearray(content)
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(swapped)


def test_profiles_are_converted_and_unreadable_ones_ignored():
    profile = wide_gamut()
    assert corners(decode_image(stored(quarters(), icc_profile=profile))) == [GREEN, RED, BLUE, WHITE]
    assert corners(decode_image(stored(quarters("RGBA"), icc_profile=profile))) == [GREEN, RED, BLUE, WHITE]
    assert corners(decode_image(stored(quarters(), icc_profile=b"not a profile"))) == [RED, GREEN, BLUE, WHITE]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = np.asarray(decode_image(stored(quarters(), icc_profile=srgb)))
    assert np.array_equal(found, np.asarray(quarters()))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind):
    other = ImageOps.mirror(quarters())
    content = stored(quarters(), kind, save_all=True, append_images=[other], duration=100, lossless=True)
    assert corners(decode_image(content)) == [RED, GREEN, BLUE, WHITE]


def test_endings_and_hidden_names():
    assert all(map(is_picture, ("a.tif", "a.GIF", "b/c.jfif", "x.JPEG", "y.webp", "z.ppm")))
    assert not any(map(is_picture, ("a.txt", "tif", "a.pdf", "a.h5", "a.mpg", "a.cls")))
    assert all(map(is_hidden, (".x.png", "a/._x.png", "__MACOSX/a/x.png", ".ipynb_checkpoints", "a/.git/x.png")))
    assert not any(map(is_hidden, ("x.png", "./a/x.png", "../x.png", "a.b/x.png")))


def test_a_format_that_starts_a_program_is_not_opened_whatever_its_name(monkeypatch):
    """An EPS in a file `x.jpg`: Pillow would call Ghostscript."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: pytest.fail("Ghostscript was started"))
    content = stored(quarters(), "EPS")
    assert Image.open(io.BytesIO(content)).format == "EPS"
    with pytest.raises(OSError, match="cannot identify image file"):
        decode_image(content)


def test_more_pixels_than_the_limit_are_refused_before_pillow_warns():
    with pytest.raises(ValueError, match="it has 50005000 pixels; expected at most 50000000"):
        decode_image(stored(Image.new("1", (10_001, 5_000))))
    assert Image.MAX_IMAGE_PIXELS > 50_000_000


@pytest.mark.parametrize("size", [(800, 600), (601, 1207)])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(size):
    """Against the decoding of all pixels: 1/8 of the side at most, and nearly the same picture."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    content = stored(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), "JPEG", quality=95)
    whole, (small, extent) = decode_image(content), decode_small(content, 64)
    assert whole.size == size
    assert 64 <= min(small.size) < min(size) / 4
    assert extent[0] / size[0] == extent[1] / size[1] == 1 / 8
    views = [
        np.asarray(picture.resize((32, 32), Image.Resampling.LANCZOS, box=(0, 0, *sides))).astype(int)
        for picture, sides in ((whole, whole.size), (small, extent))
    ]
    assert np.abs(views[0] - views[1]).mean() < 1.5
    assert decode_small(stored(quarters()), 4)[1] == (16, 16)  # no JPEG
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_small(stored(whole, "JPEG", exif=exif), 64)
    assert turned[1] == turned[0].size == size[::-1]
