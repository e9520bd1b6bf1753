import hashlib
import io
import json
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.core.bundle import PictureSpec
from service.core.limits import MAX_JPEG_SCANS, MAX_PICTURE_FRAMES
from service.core.pictures import KEPT_PX, keep_picture, picture_pixels
from service.core.render import content_hash, item_text
from service.errors import InvalidItem
from tests.known_bundle import render_spec
from tests.service.core import bombs
from tests.service.core.photos import damaged, drawn, photo, written

# Pillow warns of broken metadata, and reads the picture nevertheless.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SPEC = PictureSpec(size_px=64)
# How far a pixel may be from the original after a lossy format or two.
CLOSE = 14


def kept_pixels(data: bytes) -> np.ndarray:
    kept = keep_picture(data)
    with Image.open(io.BytesIO(kept.data)) as picture:
        assert (picture.format, picture.mode, picture.size) == ("WEBP", "RGB", (kept.width, kept.height))
        return np.asarray(picture).astype(int)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected.astype(int)).mean() < CLOSE / 2


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_a_small_picture_is_kept_at_its_size_with_its_colors(format_name):
    picture = drawn(1, (120, 90))
    assert_close(kept_pixels(written(picture, format_name)), np.asarray(picture))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("size", "expected"), [((1500, 1000), (256, 171)), ((700, 1400), (128, 256)), ((3000, 1), (256, 1))]
)
def test_a_large_picture_is_kept_with_its_longer_side_at_the_limit(format_name, size, expected):
    picture = drawn(2, size)
    found = kept_pixels(written(picture, format_name))
    assert found.shape == (expected[1], expected[0], 3)
    assert_close(found, np.asarray(picture.resize(expected, Image.Resampling.BOX)))


def test_equal_bytes_give_equal_pictures_and_the_hash_is_that_of_the_kept_bytes():
    first, again = keep_picture(photo(3)), keep_picture(photo(3))
    assert first == again
    assert first.sha256 == hashlib.sha256(first.data).hexdigest()
    assert keep_picture(photo(4)).sha256 != first.sha256


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_kept_upright_whatever_its_orientation(orientation, format_name):
    upright = drawn(5, (160, 100))
    # What a camera stores, so that EXIF's orientation turns it back: the inverse of the turn.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.rotate(180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.rotate(90, expand=True),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.rotate(-90, expand=True),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_close(kept_pixels(written(stored, format_name, exif=exif)), np.asarray(upright))


def test_broken_metadata_does_not_break_the_picture():
    data = written(drawn(6, (50, 40)), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert kept_pixels(data).shape == (40, 50, 3)


@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
def test_transparent_parts_become_white_and_half_transparent_ones_lighter(format_name):
    picture = Image.new("RGBA", (90, 30), (200, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (30, 0, 60, 30))
    picture.paste((0, 0, 0, 128), (60, 0, 90, 30))
    found = kept_pixels(
        written(picture, format_name, **({"lossless": True} if format_name == "WEBP" else {}))
    )
    assert_close(found[15, 15], np.array([200, 0, 0]))
    assert_close(found[15, 45], np.array([255, 255, 255]))
    assert_close(found[15, 75], np.array([127, 127, 127]))


def test_the_color_of_transparent_pixels_does_not_bleed_into_a_shrunk_picture():
    picture = Image.new("RGBA", (1024, 1024), (0, 255, 0, 0))
    picture.paste((255, 255, 255, 255), (0, 0, 512, 1024))
    assert kept_pixels(written(picture, "PNG")).min() > 250


def test_every_mode_of_png_and_jpeg_is_read_as_what_it_shows():
    gray = np.linspace(0, 255, 60 * 60).reshape(60, 60).astype(np.uint8)
    picture = drawn(7, (60, 60))
    wide = Image.fromarray(gray.astype(np.uint16) * 257)
    of_gray = np.repeat(gray[..., None], 3, axis=2)
    for data, expected in (
        (written(Image.fromarray(gray), "PNG"), of_gray),
        (written(wide, "PNG"), of_gray),
        (written(Image.fromarray(gray).convert("LA"), "PNG"), of_gray),
        (written(Image.fromarray(gray), "JPEG", quality=95), of_gray),
        (written(picture.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), np.asarray(picture)),
        (written(picture.convert("CMYK"), "JPEG", quality=95), np.asarray(picture)),
        (
            written(Image.fromarray(gray).convert("1", dither=Image.Dither.NONE), "PNG"),
            np.where(of_gray >= 128, 255, 0),
        ),
    ):
        assert_close(kept_pixels(data), expected)


def test_a_transparent_color_of_a_palette_and_of_gray_becomes_white():
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert kept_pixels(written(palette, "PNG", transparency=1)).min() > 250
    assert kept_pixels(written(Image.new("L", (40, 40), 7), "PNG", transparency=7)).min() > 250
    wide = Image.fromarray(np.full((40, 40), 5_000, np.uint16))
    assert kept_pixels(written(wide, "PNG", transparency=5_000)).min() > 250


@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_kept(format_name):
    frames = [Image.new("RGB", (40, 30), color) for color in ("blue", "red", "green")]
    data = written(frames[0], format_name, save_all=True, append_images=frames[1:])
    assert_close(kept_pixels(data), np.asarray(frames[0]))


def test_the_pixels_fill_the_square_with_the_aspect_kept_and_centered_on_white():
    kept = keep_picture(written(Image.new("RGB", (200, 100), "blue"), "PNG"))
    pixels = picture_pixels(kept.data, SPEC)
    assert (pixels.shape, pixels.dtype) == ((64, 64, 3), np.uint8)
    assert (pixels[:16] == 255).all()
    assert (pixels[48:] == 255).all()
    assert_close(pixels[16:48].astype(int), np.full((32, 64, 3), (0, 0, 255)))
    # A small picture is enlarged for the encoder, but it was kept as it is.
    small = keep_picture(written(Image.new("RGB", (8, 16), "red"), "PNG"))
    assert (small.width, small.height) == (8, 16)
    assert_close(picture_pixels(small.data, SPEC)[:, 16:48].astype(int), np.full((64, 32, 3), (255, 0, 0)))


@pytest.mark.parametrize("size", [(1, 1), (256, 1), (1, 256), (3, 2)])
def test_the_thinnest_picture_still_has_pixels(size):
    kept = keep_picture(written(Image.new("RGB", size, "black"), "PNG"))
    assert picture_pixels(kept.data, SPEC).min() < 60


def test_bytes_that_are_no_kept_picture_are_refused():
    kept = keep_picture(photo(8)).data
    for data in (b"", b"RIFF", photo(8), kept[: len(kept) // 2], photo(8, "WEBP", (600, 300))):
        with pytest.raises(InvalidItem, match="^image: is kept, but"):
            picture_pixels(data, SPEC)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "has no bytes"),
        (b"hello world", "is no JPEG, PNG or WebP: its first bytes are 68 65 6c 6c 6f"),
        (written(drawn(), "GIF"), "is no JPEG, PNG or WebP"),
        (written(drawn(), "BMP"), "is no JPEG, PNG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no JPEG, PNG or WebP"),
        (b"\xff\xd8\xff\xe0", "is a broken JPEG .it does not say its size"),
        (photo(1)[:-900], "is a broken JPEG"),
        (photo(1, "PNG")[:-900], "is a broken PNG"),
        (photo(1, "WEBP")[:-100], "is a broken WEBP"),
    ],
)
def test_what_is_no_whole_picture_is_refused_with_the_reason(data, reason):
    with pytest.raises(InvalidItem, match=f"^image: {reason}"):
        keep_picture(data)


def test_the_limits_of_bytes_and_pixels_hold_before_decoding():
    data = photo(9, "PNG", (40, 30))
    keep_picture(data, max_bytes=len(data), max_pixels=40 * 30)
    with pytest.raises(InvalidItem, match=f"has {len(data)} bytes; {len(data) - 1} is the limit"):
        keep_picture(data, max_bytes=len(data) - 1)
    for format_name in ("JPEG", "PNG", "WEBP"):
        with pytest.raises(InvalidItem, match="is 40 x 30 pixels; 1199 pixels are the limit"):
            keep_picture(photo(9, format_name, (40, 30)), max_pixels=1199)


def test_a_decompression_bomb_costs_no_memory():
    files = bombs.too_large()
    tracemalloc.start()
    try:
        for bomb in files:
            with pytest.raises(InvalidItem, match="pixels are the limit"):
                keep_picture(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_png_whose_text_unpacks_to_much_more_is_refused():
    with pytest.raises(InvalidItem, match="is a broken PNG"):
        keep_picture(bombs.png_with_much_text())


def test_a_jpeg_of_very_many_scans_is_refused_before_decoding():
    keep_picture(bombs.jpeg_of_scans(20))
    with pytest.raises(InvalidItem, match=f"is a JPEG of {MAX_JPEG_SCANS + 9} scans"):
        keep_picture(bombs.jpeg_of_scans(MAX_JPEG_SCANS + 9))
    with pytest.raises(InvalidItem, match="30 scans, which takes too long to decode"):
        keep_picture(bombs.jpeg_of_scans(30, (5_000, 5_000)))


def test_an_animation_of_too_many_frames_is_refused():
    frames = [Image.new("L", (1, 1), n % 251) for n in range(MAX_PICTURE_FRAMES + 1)]
    data = written(frames[0], "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(InvalidItem, match=f"has {MAX_PICTURE_FRAMES + 1} frames"):
        keep_picture(data)


WHOLE = [
    photo(0, "JPEG"),
    written(drawn(1, (80, 60)), "JPEG", progressive=True, exif=Image.Exif()),
    written(drawn(2, (80, 60)).convert("CMYK"), "JPEG"),
    photo(3, "PNG", (40, 30)),
    written(drawn(4, (40, 30)).convert("P"), "PNG", transparency=3),
    written(drawn(5, (20, 30)), "PNG", save_all=True, append_images=[drawn(6, (20, 30))]),
    photo(7, "WEBP"),
    written(drawn(8, (30, 30)).convert("RGBA"), "WEBP", lossless=True),
    written(drawn(9, (30, 30)), "WEBP", save_all=True, append_images=[drawn(10, (30, 30))]),
]


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_a_damaged_picture_is_kept_or_refused_as_one_item(seed):
    rng = random.Random(seed)
    data = damaged(rng.choice(WHOLE), rng.choice(WHOLE), rng)
    try:
        kept = keep_picture(data, max_pixels=10**6)
    except InvalidItem as refusal:
        kept, reason = None, str(refusal)
    if kept is None:
        assert reason.startswith("image: ")
        assert len(reason) < 300
    else:
        assert max(kept.width, kept.height) <= KEPT_PX
        assert picture_pixels(kept.data, SPEC).shape == (64, 64, 3)


def test_the_field_image_is_never_drawn():
    spec = render_spec()
    plain = {"item_id": "a", "title": "Lamp"}
    for image in ("https://example.org/lamp.jpg", {"sha256": "0" * 64}, ["a.jpg"]):
        assert item_text({**plain, "image": image}, spec) == item_text(plain, spec)
        named = spec.model_copy(update={"fields": ("image", "title")})
        assert item_text({**plain, "image": image}, named) == "Lamp"


def test_the_content_of_an_item_without_a_picture_has_the_hash_of_its_text():
    text_hash = hashlib.sha256(b"Lamp").hexdigest()[:32]
    assert content_hash("Lamp") == text_hash
    hashes = {content_hash(text, sha) for text in ("Lamp", "Vase") for sha in (None, "0" * 64, "1" * 64)}
    assert len(hashes) == 6
    assert json.dumps(sorted(map(len, hashes))) == json.dumps([32] * 6)
