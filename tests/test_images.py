"""Images. Oracles: round trips over all grey levels, and files that are broken on purpose."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from cdm_lightning import images
from cdm_lightning.images import (
    PIXEL_LIMIT,
    as_tensor,
    crop_and_resize,
    encode_png,
    from_uint8,
    open_image,
    spread,
    to_uint8,
)
from tests.decoding import decode_image

LEVELS = torch.arange(256, dtype=torch.uint8)


def picture(channels: int, height: int = 7, width: int = 5) -> Tensor:
    g = torch.Generator().manual_seed(channels)
    return torch.randint(0, 256, (channels, height, width), generator=g, dtype=torch.uint8)


def saved(image: Image.Image, file_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return open_image(io.BytesIO(data))


def png_of_size(width: int, height: int) -> bytes:
    """Return a small PNG file whose header promises `width` x `height` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_all_grey_levels_survive_the_round_trip() -> None:
    x_0 = from_uint8(LEVELS)
    assert x_0.dtype == torch.float32
    assert torch.equal(to_uint8(x_0), LEVELS)
    assert torch.equal(to_uint8(x_0.double()), LEVELS)


def test_grey_levels_are_spread_evenly_over_the_range() -> None:
    torch.testing.assert_close(from_uint8(LEVELS), torch.linspace(-1, 1, 256), rtol=0, atol=1e-6)


def test_to_uint8_goes_to_the_nearest_level_and_clips() -> None:
    x_0, step = from_uint8(LEVELS).double(), 2 / 255
    assert torch.equal(to_uint8(x_0 + 0.49 * step), LEVELS)
    assert torch.equal(to_uint8(x_0 - 0.49 * step), LEVELS)
    assert to_uint8(torch.tensor([-7.0, -1.001, 1.001, 7.0])).tolist() == [0, 0, 255, 255]


def test_images_of_every_folder_are_among_some_of_all() -> None:
    """Sorted by folder, 60 of one and 40 of another: a tenth of all is a tenth of each."""
    images = torch.arange(100).reshape(100, 1)
    assert spread(images, 10).flatten().tolist() == list(range(0, 100, 10))
    assert spread(images, 3).flatten().tolist() == [0, 33, 66]
    assert torch.equal(spread(images, 100), images)
    assert torch.equal(spread(images, 101), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels: int) -> None:
    image = picture(channels)
    data = encode_png(image)
    assert torch.equal(decode_image(data, (channels, 7, 5)), image)
    assert data == encode_png(image.clone())
    assert data != encode_png(255 - image)


def test_png_of_a_strided_view_is_that_of_its_copy() -> None:
    images = torch.stack([picture(3), 255 - picture(3)], dim=-1)
    assert encode_png(images[..., 1]) == encode_png(images[..., 1].contiguous())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_plain_png_is_not_read_as_a_file(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data, shape = encode_png(picture(channels)), (channels, 7, 5)
    with_more = data[:33] + data[33:].replace(data[33:41], b"\0\0\0\0gAMA\0\0\0\0" + data[33:41], 1)
    expected = as_tensor(opened(data), channels)
    monkeypatch.setattr(images, "_header", lambda file: pytest.fail("a file was read"))
    assert torch.equal(decode_image(data, shape), expected)
    for other in (with_more, data[:-1], data.replace(b"IDAT", b"JDAT")):
        with pytest.raises(pytest.fail.Exception, match="a file was read"):
            decode_image(other, shape)


def test_grey_becomes_three_equal_channels_and_colour_becomes_luma() -> None:
    grey, colour = picture(1), picture(3)
    assert torch.equal(as_tensor(opened(encode_png(grey)), 3), grey.expand(3, -1, -1))
    luma = torch.einsum("chw,c->hw", colour.double(), torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))
    assert (as_tensor(opened(encode_png(colour)), 1)[0].double() - luma).abs().max() <= 0.501


def test_jpeg_is_decoded() -> None:
    flat = Image.new("RGB", (8, 8), (200, 100, 50))
    decoded = decode_image(saved(flat, "JPEG"), (3, 8, 8))
    assert (decoded.double() - torch.tensor([200.0, 100, 50]).reshape(3, 1, 1)).abs().max() <= 3


def test_as_tensor_has_channel_height_width() -> None:
    image = Image.fromarray(picture(3).permute(1, 2, 0).numpy())
    assert torch.equal(as_tensor(image, 3), picture(3))
    assert as_tensor(image, 1).shape == (1, 7, 5)
    assert as_tensor(image, 3).is_contiguous()


def test_crop_and_resize_of_the_exact_size_is_the_identity() -> None:
    image = Image.fromarray(picture(3, 6, 6).permute(1, 2, 0).numpy())
    assert torch.equal(as_tensor(crop_and_resize(image, 6), 3), picture(3, 6, 6))


@pytest.mark.parametrize(("height", "width", "top", "left"), [(6, 10, 0, 2), (11, 6, 2, 0), (6, 7, 0, 0)])
def test_crop_is_the_largest_centred_square(height: int, width: int, top: int, left: int) -> None:
    pixels = picture(3, height, width)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    expected = pixels[:, top : top + 6, left : left + 6]
    assert torch.equal(as_tensor(crop_and_resize(image, 6), 3), expected)


@pytest.mark.parametrize("size", [1, 5, 32, 200])
def test_resize_keeps_flat_colour_and_gives_the_size(size: int) -> None:
    resized = as_tensor(crop_and_resize(Image.new("RGB", (40, 33), (250, 7, 128)), size), 3)
    assert torch.equal(resized, torch.tensor([250, 7, 128], dtype=torch.uint8).reshape(3, 1, 1).expand(3, size, size))


def test_resize_averages_fine_patterns_away() -> None:
    """A chequerboard becomes grey; without antialiasing it becomes a coarser chequerboard, or black."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    small = as_tensor(crop_and_resize(Image.fromarray(board.astype(np.uint8)), 8), 1)
    assert (small.double() - 127.5).abs().max() < 8


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (64_000_001, 1)])
def test_more_pixels_than_the_limit_are_refused_before_they_are_decoded(width: int, height: int) -> None:
    assert width * height > PIXEL_LIMIT
    with pytest.raises(ValueError, match=f"{width}x{height} pixels are more than {PIXEL_LIMIT}"):
        opened(png_of_size(width, height))


def test_a_bomb_is_refused() -> None:
    with pytest.raises(ValueError, match="no readable PNG or JPEG image"):
        opened(png_of_size(60000, 60000))


@pytest.mark.parametrize(
    "data",
    [b"", b"junk", bytes(1000), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", saved(Image.new("L", (4, 4)), "GIF")],
    ids=["empty", "text", "zeros", "png signature", "jpeg start", "gif"],
)
def test_junk_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no readable PNG or JPEG image"):
        decode_image(data, (3, 4, 4))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_cut_file_is_refused(file_format: str) -> None:
    g = np.random.default_rng(0)
    data = saved(Image.fromarray(g.integers(0, 256, (40, 40, 3), dtype=np.uint8)), file_format)
    for cut in range(0, len(data) - 20, len(data) // 25):
        with pytest.raises(ValueError, match="no readable PNG or JPEG image"):
            decode_image(data[:cut], (3, 40, 40))


@pytest.mark.parametrize(
    ("image", "shape", "message"),
    [
        (Image.new("L", (5, 7)), (1, 5, 7), "it is 5x7 grey, not 7x5 grey"),
        (Image.new("L", (5, 7)), (3, 7, 5), "it is 5x7 grey, not 5x7 colour"),
        (Image.new("RGB", (5, 7)), (1, 7, 5), "it is 5x7 colour, not 5x7 grey"),
        (Image.new("P", (5, 7)), (3, 7, 5), "it is 5x7 of mode P, not 5x7 colour"),
        (Image.new("1", (5, 7)), (1, 7, 5), "it is 5x7 of mode 1, not 5x7 grey"),
        (Image.new("LA", (5, 7)), (1, 7, 5), "it is 5x7 of mode LA, not 5x7 grey"),
    ],
)
def test_another_shape_is_refused_not_converted(image: Image.Image, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_image(saved(image, "PNG"), shape)


def with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_an_image_is_turned_upright(file_format: str) -> None:
    left_half_white = Image.new("L", (16, 16))
    left_half_white.paste(255, (0, 0, 8, 16))
    buffer = io.BytesIO()
    left_half_white.save(buffer, file_format, exif=with_exif(6))  # 6: to be turned by 90 degrees clockwise
    upright = as_tensor(opened(buffer.getvalue()), 1)[0]
    assert (upright[:8] > 127).all()
    assert (upright[8:] < 128).all()


NOISE = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)


def with_metadata(file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, file_format, exif=with_exif(6), icc_profile=bytes(20))
    return buffer.getvalue()


FILES = [saved(Image.fromarray(NOISE), kind) for kind in ("PNG", "JPEG")] + [
    saved(Image.fromarray(NOISE).quantize(16), "PNG"),
    with_metadata("PNG"),
    with_metadata("JPEG"),
]


@given(st.sampled_from(FILES), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_a_damaged_file_is_decoded_or_refused_with_a_value_error(data: bytes, hits: list[tuple[float, int]]) -> None:
    damaged = bytearray(data)
    for place, value in hits:
        damaged[int(place * (len(data) - 1))] = value
    with suppress(ValueError):
        assert decode_image(bytes(damaged), (3, 12, 12)).shape == (3, 12, 12)
    with suppress(ValueError):
        assert opened(bytes(damaged)).width > 0


def test_metadata_that_pillow_stumbles_over_is_refused() -> None:
    """A text under the tag of the image's width: turning it upright ends in a struct.error."""
    exif = with_exif(6)
    exif[0x010E] = "hello"
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "JPEG", exif=exif)
    assert opened(buffer.getvalue()).size == (12, 12)
    with pytest.raises(ValueError, match="no readable PNG or JPEG image"):
        opened(buffer.getvalue().replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02"))
