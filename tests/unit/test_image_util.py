"""Pixels: what is read, turned, flattened, resized and cut, and what is refused."""

import random
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from library.data.buckets import BucketSelector, Placement, select_bucket
from library.data.images.image_util import (
    INTERPOLATIONS,
    check_image,
    crop_offset,
    fit_to_bucket,
    load_rgb,
    read_image,
    read_mask,
    readable_formats,
    resize_image,
    to_model_input,
)

NOISE_HWC = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp"])
def test_lossless_formats_are_read_exactly(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path / name, Image.fromarray(NOISE_HWC), **options)
    np.testing.assert_array_equal(load_rgb(path), NOISE_HWC)
    assert check_image(path) == (90, 60)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = Image.fromarray(NOISE_HWC)
    stored_as = {  # how a camera with this orientation stores an upright picture
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if stored_as is None else upright.transpose(stored_as)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", stored, exif=exif)
    np.testing.assert_array_equal(load_rgb(path), NOISE_HWC)
    assert check_image(path) == (90, 60)


def test_transparency_is_composited_on_white(tmp_path):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = (0, 255, 51)  # clear, opaque, a fifth
    path = saved(tmp_path / "a.png", Image.fromarray(pixels))
    assert load_rgb(path)[0, :, 0].tolist() == [255, 0, 204]


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    path = saved(tmp_path / "a.png", image, transparency=1)
    assert load_rgb(path).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_grey_cmyk_and_16_bit(tmp_path):
    grey = saved(tmp_path / "g.png", Image.new("L", (4, 4), 77))
    deep = saved(tmp_path / "d.png", Image.fromarray(np.full((4, 4), 32768, np.uint16)))
    cmyk = saved(tmp_path / "c.jpg", Image.new("CMYK", (8, 8), (0, 0, 0, 0)))
    assert (load_rgb(grey) == 77).all()
    assert (load_rgb(deep) == 128).all()
    assert load_rgb(cmyk).shape == (8, 8, 3) and load_rgb(cmyk).min() > 250


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.97])
def test_truncated_images_are_named(tmp_path, name, kept):
    path = saved(tmp_path / name, Image.fromarray(NOISE_HWC))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    for read in (check_image, load_rgb):
        with pytest.raises(ValueError, match=f"{name}: the image cannot be read"):
            read(path)


def test_text_and_unlisted_formats_are_refused(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no image")
    gif = saved(tmp_path / "gif.png", Image.new("L", (4, 4)), format="GIF")
    for path in (text, gif, tmp_path / "absent.png"):
        with pytest.raises(ValueError, match=path.name):
            check_image(path)


def test_a_decompression_bomb_is_refused(tmp_path):
    path = saved(tmp_path / "bomb.png", Image.new("1", (20000, 10000)))
    with pytest.raises(ValueError, match=r"bomb\.png"):
        check_image(path)


def test_a_large_image_is_read_without_a_warning(tmp_path):
    path = saved(tmp_path / "large.png", Image.new("1", (10000, 9000)))
    program = "import sys; from library.data.images.image_util import check_image; print(check_image(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("(10000, 9000)", "")


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(45, 30), (200, 133), (31, 90)])
def test_resize_is_pillows_or_opencvs_result(interpolation, size):
    by_pillow = {"lanczos": Image.Resampling.LANCZOS, "lanczos4": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}
    by_opencv = {
        "nearest": cv2.INTER_NEAREST_EXACT,
        "bilinear": cv2.INTER_LINEAR,
        "linear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "cubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
    }
    if interpolation in by_pillow:
        expected = np.array(Image.fromarray(NOISE_HWC).resize(size, by_pillow[interpolation]))
    else:
        expected = cv2.resize(NOISE_HWC, size, interpolation=by_opencv[interpolation])
    np.testing.assert_array_equal(resize_image(NOISE_HWC, size, interpolation), expected)


def test_resize_without_a_name_is_area_down_and_lanczos_up():
    for size, name in [((45, 30), "area"), ((90, 30), "area"), ((91, 30), "lanczos"), ((180, 120), "lanczos")]:
        np.testing.assert_array_equal(resize_image(NOISE_HWC, size), resize_image(NOISE_HWC, size, name))


def test_an_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="'sinc'; allowed are lanczos"):
        resize_image(NOISE_HWC, (10, 10), "sinc")


def test_every_pixel_of_the_bucket_comes_from_the_image():
    rng = random.Random(0)
    for _ in range(30):
        image = np.ones((rng.randint(20, 200), rng.randint(20, 200), 3), np.uint8)
        placement = select_bucket((image.shape[1], image.shape[0]), [(64, 128), (96, 96), (128, 64)])
        offset = crop_offset(placement, rng)
        fitted = fit_to_bucket(image, placement, offset)
        assert fitted.shape == (placement.bucket[1], placement.bucket[0], 3)
        assert (fitted == 1).all()


def test_crop_in_the_centre_and_at_random():
    placement = Placement((64, 64), (101, 64), 0.0)
    assert crop_offset(placement, None) == (18, 0)
    drawn = {crop_offset(placement, random.Random(seed)) for seed in range(300)}
    assert {left for left, _ in drawn} == set(range(38)) and {top for _, top in drawn} == {0}
    pixels = np.arange(101, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    assert fit_to_bucket(pixels, placement, (18, 0))[0, :, 0].tolist() == list(range(18, 82))


def test_model_input_range_layout_and_mirror():
    chw = to_model_input(NOISE_HWC)
    assert chw.dtype == np.float32 and chw.shape == (3, 60, 90) and chw.flags.c_contiguous
    np.testing.assert_array_equal(chw, (NOISE_HWC.transpose(2, 0, 1).astype(np.float32) / 255 - 0.5) / 0.5)
    np.testing.assert_array_equal(to_model_input(NOISE_HWC, flipped=True), chw[:, :, ::-1])
    assert to_model_input(np.array([[[0, 128, 255]]], np.uint8)).ravel().tolist()[::2] == [-1.0, 1.0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("interpolation", [*INTERPOLATIONS, None])
def test_resize_of_an_opened_image_is_that_of_its_pixels(mode, interpolation):
    pixels = np.random.default_rng(4).integers(0, 256, (60, 90, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    for size in ((45, 30), (120, 133), (90, 60)):
        found = resize_image(image, size, interpolation)
        np.testing.assert_array_equal(found, resize_image(np.asarray(image), size, interpolation))
        assert found.shape == (size[1], size[0], *np.asarray(image).shape[2:])


def test_the_first_of_several_frames_is_read(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (40, 90, 200)]
    for name, options in (("a.png", {}), ("a.webp", {"lossless": True})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=50, **options)
        with Image.open(tmp_path / name) as opened:
            assert opened.n_frames == 3
        assert (load_rgb(tmp_path / name) == 40).all() and check_image(tmp_path / name) == (8, 8)
    # what two-lens phones write into .jpg files
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert np.abs(load_rgb(tmp_path / "a.jpg").astype(int) - 40).max() <= 1


@pytest.mark.skipif("AVIF" not in readable_formats(), reason="this Pillow cannot open AVIF")
def test_avif_is_read_upright(tmp_path):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).repeat(96).reshape(64, 96) * 3).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.avif", quality=100, exif=exif)
    turned = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    assert check_image(tmp_path / "a.avif") == (64, 96)
    assert np.abs(load_rgb(tmp_path / "a.avif").astype(int) - turned).max() <= 6


@pytest.mark.skipif("JXL" not in readable_formats(), reason="pillow-jxl-plugin is not installed")
def test_jpeg_xl_is_read(tmp_path):
    Image.fromarray(NOISE_HWC).save(tmp_path / "a.jxl", lossless=True)
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.jxl"), NOISE_HWC)


def test_the_content_decides_and_not_the_ending(tmp_path):
    Image.fromarray(NOISE_HWC).save(tmp_path / "in_truth_png.jpg", format="PNG")
    np.testing.assert_array_equal(load_rgb(tmp_path / "in_truth_png.jpg"), NOISE_HWC)
    for form in ("GIF", "TIFF", "PPM", "ICO", "EPS"):
        Image.fromarray(NOISE_HWC).save(tmp_path / "other.png", format=form)
        with pytest.raises(ValueError, match=r"other\.png.*no image in one of the formats PNG, JPEG"):
            check_image(tmp_path / "other.png")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them changed, or a part cut out."""
    changed = bytearray(data)
    if rng.random() < 0.3:
        start = rng.randrange(len(changed))
        del changed[start : start + rng.randrange(1, 60)]
    for _ in range(rng.randrange(1, 6)):
        changed[rng.randrange(min(len(changed), rng.choice((40, 400, len(changed)))))] = rng.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize(
    "form", [name for name in ("PNG", "JPEG", "WEBP", "BMP", "AVIF") if name in readable_formats()]
)
def test_damaged_files_are_read_or_refused_by_name(tmp_path, form):
    """Whatever the damage, the result is an image or a ValueError that names the file, never another exception."""
    rng = random.Random(form)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    options = (
        {}
        if form == "BMP"
        else {"exif": exif, "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
    )
    Image.fromarray(NOISE_HWC).save(tmp_path / "whole", format=form, **options)
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "damaged.png"
    refused = 0
    for _ in range(150):
        path.write_bytes(damaged(whole, rng))
        for read in (check_image, load_rgb):
            try:
                read(path)
            except ValueError as error:
                assert str(error).startswith(f"{path}: the image cannot be read: ")
                refused += 1
    assert refused > 0


def test_colours_below_transparency_are_kept_where_alpha_is_the_mask(tmp_path):
    pixels = np.random.default_rng(5).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(np.asarray(read_image(path, alpha=True)), pixels)
    opaque = saved(tmp_path / "b.png", Image.fromarray(NOISE_HWC))
    found = np.asarray(read_image(opaque, alpha=True))
    np.testing.assert_array_equal(found, np.concatenate([NOISE_HWC, np.full((60, 90, 1), 255, np.uint8)], -1))


def test_masks_are_read_from_the_red_channel_and_transparent_is_black(tmp_path):
    colour = saved(tmp_path / "c.png", Image.fromarray(NOISE_HWC))
    np.testing.assert_array_equal(np.asarray(read_mask(colour)), NOISE_HWC[..., 0])
    for mode in ("L", "1", "P"):
        grey = Image.fromarray(NOISE_HWC[..., 1]).convert(mode)
        path = saved(tmp_path / "g.png", grey)
        np.testing.assert_array_equal(np.asarray(read_mask(path)), np.asarray(grey.convert("RGB"))[..., 0])
    painted = np.full((4, 4, 4), 255, np.uint8)
    painted[:2, :, 3] = 0
    path = saved(tmp_path / "p.png", Image.fromarray(painted))
    assert np.asarray(read_mask(path)).tolist() == [[0] * 4] * 2 + [[255] * 4] * 2
    deep = saved(tmp_path / "d.png", Image.fromarray(np.full((4, 4), 32768, np.uint16)))
    assert (np.asarray(read_mask(deep)) == 128).all()


@pytest.mark.parametrize("no_upscale", [False, True])
def test_no_pixel_of_a_bucket_is_left_unfilled(no_upscale):
    """For sizes drawn at random, any filter and any crop: a white image gives a white bucket of the right size."""
    rng = random.Random(6)
    selector = BucketSelector((96, 96), enabled=True, min_side=32, max_side=192, steps=32, no_upscale=no_upscale)
    for _ in range(150):
        size = (rng.randint(33, 300), rng.randint(33, 300))
        if no_upscale and max(size) / min(size) > 8:
            continue
        placement = selector.select(size)
        white = Image.new(rng.choice(("RGB", "RGBA", "L")), size, "white")
        fitted = fit_to_bucket(white, placement, crop_offset(placement, rng), rng.choice((*INTERPOLATIONS, None)))
        assert fitted.shape[:2] == placement.bucket[::-1] and (fitted == 255).all()
