"""Colour profiles, bit depths and modes, against Pillow's colour management called on its own."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from library.data.images.image_util import check_image, load_rgb, read_image

NOISE_HWC = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def wide_profile(curve_gamma: float = 2.2) -> bytes:
    """An ICC v2 profile of Adobe RGB's primaries (adapted to D50), written by hand: XYZ columns and one gamma."""

    def xyz(*numbers: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(number * 65536) for number in numbers))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(curve_gamma * 256)) + b"\0\0"
    text = b"wide\0"
    tags = {
        b"rXYZ": xyz(0.60974, 0.31111, 0.01947),
        b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": xyz(0.14919, 0.06322, 0.74457),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
        b"cprt": b"text\0\0\0\0" + text + b"\0" * (-len(text) % 4),
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * (78 + -(len(text) + 78) % 4),
    }
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28
    header += struct.pack(">3i", 63190, 65536, 54061)  # D50
    return header + b"\0" * (128 - len(header)) + table + body


def grey_profile() -> bytes:
    """A grey ICC profile with a gamma of 1, by the same hand."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 256) + b"\0\0"
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    offset = 128 + 4 + 12 * 2
    table = struct.pack(">I", 2) + b"kTRC" + struct.pack(">II", offset, len(curve))
    table += b"wtpt" + struct.pack(">II", offset + len(curve), len(white))
    size = offset + len(curve) + len(white)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    header += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return header + b"\0" * (128 - len(header)) + table + curve + white


def by_pillow(image: Image.Image, profile: bytes) -> np.ndarray:
    srgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb, outputMode="RGB")
    return np.asarray(converted)


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_a_wide_profile_is_converted_to_srgb(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    Image.fromarray(NOISE_HWC).save(tmp_path / name, icc_profile=wide_profile(), **options)
    found = load_rgb(tmp_path / name)
    np.testing.assert_array_equal(found, by_pillow(Image.fromarray(NOISE_HWC), wide_profile()))
    assert np.abs(found.astype(int) - NOISE_HWC).max() > 20
    notes: list[str] = []
    assert check_image(tmp_path / name, notes) == (60, 40) and notes == []


def test_conversion_follows_the_definition_of_the_colour_spaces(tmp_path):
    """Red of half the level in Adobe RGB, in sRGB by the formulas of both (one level of rounding)."""
    Image.new("RGB", (4, 4), (100, 120, 140)).save(tmp_path / "a.png", icc_profile=wide_profile())
    linear = (np.array([100, 120, 140]) / 255) ** 2.2
    to_xyz = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
    srgb_to_xyz = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    rgb = np.linalg.solve(srgb_to_xyz, to_xyz @ linear)
    expected = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055) * 255
    assert np.abs(load_rgb(tmp_path / "a.png")[0, 0] - expected).max() <= 1


def test_threads_share_a_conversion(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(16)]
    for number, path in enumerate(paths):
        Image.fromarray(np.roll(NOISE_HWC, number, 0)).save(path, icc_profile=wide_profile())
    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(load_rgb, paths)):
            expected = by_pillow(Image.fromarray(np.roll(NOISE_HWC, number, 0)), wide_profile())
            np.testing.assert_array_equal(found, expected)


def test_srgb_by_profile_leaves_every_pixel_alone(tmp_path):
    Image.fromarray(NOISE_HWC).save(tmp_path / "a.png", icc_profile=SRGB)
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png"), NOISE_HWC)


def test_alpha_survives_the_conversion(tmp_path):
    alpha = np.random.default_rng(2).integers(0, 256, (40, 60, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([NOISE_HWC, alpha], -1)).save(tmp_path / "a.png", icc_profile=wide_profile())
    found = np.asarray(read_image(tmp_path / "a.png", alpha=True))
    np.testing.assert_array_equal(found[..., 3:], alpha)
    np.testing.assert_array_equal(found[..., :3], by_pillow(Image.fromarray(NOISE_HWC), wide_profile()))
    white_below = Image.alpha_composite(Image.new("RGBA", (60, 40), "white"), Image.fromarray(found)).convert("RGB")
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png"), np.asarray(white_below))


def test_a_grey_profile_is_converted(tmp_path):
    Image.new("L", (4, 4), 55).save(tmp_path / "a.png", icc_profile=grey_profile())
    linear = 55 / 255
    expected = round((1.055 * linear ** (1 / 2.4) - 0.055) * 255)
    assert np.abs(load_rgb(tmp_path / "a.png").astype(int) - expected).max() <= 1


def test_orientation_and_profile_together(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(NOISE_HWC).transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "a.png", exif=exif, icc_profile=wide_profile())
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png"), by_pillow(Image.fromarray(NOISE_HWC), wide_profile()))


@pytest.mark.parametrize(
    ("mode", "profile", "reason"),
    [
        ("RGB", b"no profile at all", "broken"),
        ("RGB", wide_profile()[:200], "broken"),
        ("RGB", grey_profile(), "it is for GRAY and the image is RGB"),
        ("L", wide_profile(), "it is for RGB and the image is GRAY"),
    ],
)
def test_a_profile_of_no_use_is_noted_and_the_pixels_are_kept(tmp_path, mode, profile, reason):
    image = Image.fromarray(NOISE_HWC).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=profile)
    notes: list[str] = []
    assert check_image(tmp_path / "a.png", notes) == (60, 40)
    assert len(notes) == 1 and "a.png: its colour profile is not used" in notes[0] and reason in notes[0]
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


def test_a_profile_that_cannot_be_unpacked_is_noted(tmp_path):
    Image.fromarray(NOISE_HWC).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    chunk = b"iCCP" + b"x\0\0not deflated"
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])  # behind the signature and IHDR
    notes: list[str] = []
    check_image(tmp_path / "a.png", notes)
    assert len(notes) == 1 and "cannot be unpacked" in notes[0]
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png"), NOISE_HWC)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA"])
def test_every_mode_becomes_rgb_or_rgba(tmp_path, mode):
    image = Image.fromarray(NOISE_HWC).convert(mode if mode != "PA" else "P")
    image.save(tmp_path / "a.png", **({"transparency": 3} if mode == "PA" else {}))
    flat = load_rgb(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        layer = opened.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    np.testing.assert_array_equal(flat, np.asarray(expected))
    rgba = np.asarray(read_image(tmp_path / "a.png", alpha=True))
    np.testing.assert_array_equal(rgba, np.asarray(layer))


def test_16_bits_are_scaled_and_not_cut(tmp_path):
    wide = np.linspace(0, 65535, 256 * 4).round().astype(np.uint16).reshape(4, 256)
    Image.fromarray(wide).save(tmp_path / "a.png")
    expected = np.round(wide.astype(np.float64) * 255 / 65535)
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png")[..., 0], expected)


def test_cmyk_without_a_profile_is_pillows(tmp_path):
    cmyk = Image.fromarray(np.random.default_rng(3).integers(0, 256, (16, 16, 4), dtype=np.uint8), "CMYK")
    cmyk.save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.mode == "CMYK"
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.jpg"), expected)
