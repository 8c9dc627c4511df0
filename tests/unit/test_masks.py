"""Masks of the loss from files to batches, and images that cannot be read."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from library.data.dataset import TrainDataset
from library.data.report.dataset_metadata import dataset_metadata
from library.data.run_rng import RunRng
from library.data.scan.masks import mask_size_problem
from library.families.sdxl.tokenizers import sdxl_tokenizers
from library.settings.config_util import DatasetConfig, SubsetConfig

BUCKETS = {"enable_bucket": True, "min_bucket_reso": 32, "max_bucket_reso": 128, "bucket_reso_steps": 32}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def noise(width, height, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def make(*subsets, kind="dreambooth", **options):
    flags = {key: options.pop(key) for key in ("skip_bad_images", "weighted_captions", "workers") if key in options}
    settings = {"resolution": (64, 64), "batch_size": 4, "source": "data.toml [[datasets]] 1"} | options
    config = DatasetConfig(subsets=subsets, kind=kind, **settings)
    return TrainDataset([config], sdxl_tokenizers(), RunRng(1), **flags)


def masked(folder, masks, **options):
    return SubsetConfig(image_dir=str(folder), conditioning_data_dir=str(masks), source="subset 1", **options)


# --- which mask -------------------------------------------------------------------------------------------------------
def test_a_mask_has_its_images_name_with_any_ending(tmp_path, caplog):
    for name in ("a.png", "b.jpg", "b.c.png"):
        save(tmp_path / "images" / name, noise(64, 64))
    for number, name in enumerate(("a.webp", "b.png", "b.c.bmp", "unused.png")):
        Image.new("L", (64, 64), 40 * number).save(
            (tmp_path / "masks").mkdir(exist_ok=True) or tmp_path / "masks" / name
        )
    with caplog.at_level(logging.WARNING):
        data = make(masked(tmp_path / "images", tmp_path / "masks"), kind="masked")
    masks = {image.path.name: image.mask.name for image in data.datasets[0].images}
    assert masks == {"a.png": "a.webp", "b.jpg": "b.png", "b.c.png": "b.c.bmp"}
    assert "1 mask of" in caplog.text and "unused.png" in caplog.text
    assert data.has_masks


def test_images_of_one_stem_have_masks_of_their_own_names(tmp_path):
    for name in ("a.png", "a.jpg"):
        save(tmp_path / "images" / name, noise(64, 64))
        save(tmp_path / "masks" / name, noise(64, 64))
    data = make(masked(tmp_path / "images", tmp_path / "masks"), kind="masked")
    assert [image.path.name for image in data.datasets[0].images] == [i.mask.name for i in data.datasets[0].images]


def test_missing_doubtful_and_misshapen_masks_are_named(tmp_path):
    for name in ("a", "b", "c", "d"):
        save(tmp_path / "images" / f"{name}.png", noise(64, 48))
    for name in ("c.bmp", "c.jpg", "d.png"):
        save(tmp_path / "masks" / name, noise(64, 64))
    with pytest.raises(ValueError) as error:
        make(masked(tmp_path / "images", tmp_path / "masks"), kind="masked")
    text = str(error.value)
    assert "2 images have no mask" in text and "a.png, b.png" in text
    assert "c.png: several masks" in text and "(c.bmp, c.jpg)" in text
    assert "d.png: the mask has 64 x 64 pixels and the image 64 x 48" in text


def test_a_folder_of_masks_that_is_not_there(tmp_path):
    save(tmp_path / "images" / "a.png", noise(64, 64))
    with pytest.raises(ValueError, match=r"subset 1: the folder .*masks' does not exist"):
        make(masked(tmp_path / "images", tmp_path / "masks"), kind="masked")


def test_masks_and_pictures_held_back_for_validation(tmp_path):
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png", noise(64, 64))
        save(tmp_path / "masks" / f"{number}.png", noise(64, 64, 1)[..., 0])
    (tmp_path / "images" / "0.png").write_text("broken")
    data = make(
        masked(tmp_path / "images", tmp_path / "masks"), kind="masked", validation_split=0.34, skip_bad_images=True
    )
    assert len(data.datasets[0].images) == 2 and len(data.validation[0].images) == 1
    assert all(image.mask is not None for image in data.validation[0].images)


@pytest.mark.parametrize(
    ("image", "mask", "fits"),
    [((1000, 750), (1000, 750), True), ((1000, 750), (500, 375), True), ((1001, 750), (500, 375), True)]
    + [((100, 75), (400, 300), True), ((100, 75), (400, 302), True), ((100, 75), (400, 310), False)]
    + [((1000, 750), (750, 1000), False), ((1000, 750), (1000, 740), False)],
)
def test_a_mask_fits_when_it_has_the_images_shape(image, mask, fits):
    assert (mask_size_problem(image, mask) is None) == fits


# --- what reaches the batch -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, BUCKETS])
def test_a_mask_is_cut_and_mirrored_with_its_image(tmp_path, options):
    """A mask that is the image's own red channel stays so, whatever is drawn for the sample."""
    for number, (width, height) in enumerate(((200, 150), (90, 130), (64, 64), (70, 40))):
        grey = noise(width, height, 1, number)
        save(tmp_path / "images" / f"{number}.png", grey.repeat(3, -1))
        save(tmp_path / "masks" / f"{number}.png", grey[..., 0])
    varied = {"flip_aug": True, "random_crop": True, "num_repeats": 6}
    for interpolation in (None, "lanczos", "bicubic"):
        subset = masked(tmp_path / "images", tmp_path / "masks", resize_interpolation=interpolation, **varied)
        for batch in make(subset, kind="masked", **options).batches(1, 0):
            assert batch.masks_BHW.dtype == np.float32 and batch.masks_BHW.shape == batch.images_BCHW[:, 0].shape
            np.testing.assert_allclose(batch.masks_BHW, batch.images_BCHW[:, 0] / 2 + 0.5, atol=1e-6)


def test_alpha_as_mask_is_cut_and_mirrored_and_leaves_the_colours(tmp_path):
    pixels = noise(64, 64, 4)
    save(tmp_path / "images" / "a.png", pixels)
    subset = SubsetConfig(image_dir=str(tmp_path / "images"), alpha_mask=True, flip_aug=True, num_repeats=8)
    mirrored = 0
    for batch in make(subset).batches(1, 0):
        for image, mask in zip(batch.images_BCHW, batch.masks_BHW, strict=True):
            flipped = not np.allclose(mask, pixels[..., 3] / 255)
            stored = pixels[:, ::-1] if flipped else pixels
            np.testing.assert_allclose(mask, stored[..., 3] / 255, atol=1e-6)
            np.testing.assert_allclose(image, stored[..., :3].transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
            mirrored += flipped
    assert 0 < mirrored < 8


def test_alpha_is_resized_with_the_colours_as_the_original_does(tmp_path):
    pixels = noise(150, 150, 4)
    save(tmp_path / "images" / "a.png", pixels)
    for name, library in (("lanczos", Image.Resampling.LANCZOS), ("box", Image.Resampling.BOX)):
        subset = SubsetConfig(image_dir=str(tmp_path / "images"), alpha_mask=True, resize_interpolation=name)
        (batch,) = make(subset).batches(1, 0)
        expected = np.asarray(Image.fromarray(pixels).resize((64, 64), library))  # premultiplies inside
        np.testing.assert_allclose(batch.masks_BHW[0], expected[..., 3] / 255, atol=1e-6)
        np.testing.assert_allclose(batch.images_BCHW[0], expected[..., :3].transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_images_without_a_mask_weigh_one_and_batches_without_masks_have_none(tmp_path):
    save(tmp_path / "clear" / "a.png", noise(64, 64, 4))
    save(tmp_path / "opaque" / "b.png", noise(64, 64))
    plain = SubsetConfig(image_dir=str(tmp_path / "clear"))
    by_alpha = SubsetConfig(image_dir=str(tmp_path / "clear"), alpha_mask=True)
    opaque = SubsetConfig(image_dir=str(tmp_path / "opaque"), alpha_mask=True)
    (batch,) = make(plain).batches(1, 0)
    assert batch.masks_BHW is None and not make(plain).has_masks
    (batch,) = make(opaque).batches(1, 0)
    assert (batch.masks_BHW == 1).all()
    other = SubsetConfig(image_dir=str(tmp_path / "opaque"))
    (batch,) = make(by_alpha, other).batches(1, 0)
    ones = {key.rsplit("/", 1)[1]: (mask == 1).all() for key, mask in zip(batch.keys, batch.masks_BHW, strict=True)}
    assert ones == {"a.png": False, "b.png": True}


def test_a_folder_of_masks_goes_before_alpha_and_says_so(tmp_path, caplog):
    save(tmp_path / "images" / "a.png", noise(64, 64, 4))
    save(tmp_path / "masks" / "a.png", np.full((64, 64), 51, np.uint8))
    with caplog.at_level(logging.WARNING):
        (batch,) = make(masked(tmp_path / "images", tmp_path / "masks", alpha_mask=True), kind="masked").batches(1, 0)
    assert (batch.masks_BHW == np.float32(0.2)).all() and "alpha_mask is not used" in caplog.text


# --- augmentation in batches ------------------------------------------------------------------------------------------
def test_colour_changes_reach_the_image_and_not_the_mask(tmp_path):
    save(tmp_path / "images" / "a.png", noise(64, 64, 4))
    options = {"image_dir": str(tmp_path / "images"), "alpha_mask": True, "num_repeats": 40}
    plain = {batch.images_BCHW.tobytes() for batch in make(SubsetConfig(**options), batch_size=1).batches(1, 0)}
    data = make(SubsetConfig(color_aug=True, **options), batch_size=1, workers=2)
    varied = list(data.batches(1, 0))
    changed = [batch for batch in varied if batch.images_BCHW.tobytes() not in plain]
    assert len(plain) == 1 and 4 < len(changed) < 24
    assert len({batch.masks_BHW.tobytes() for batch in varied}) == 1
    again = [
        batch.images_BCHW.tobytes()
        for batch in make(SubsetConfig(color_aug=True, **options), batch_size=1).batches(1, 0)
    ]
    assert again == [batch.images_BCHW.tobytes() for batch in varied]


def test_crops_around_a_face_hold_it_and_tell_the_model_their_own_size(tmp_path):
    pixels = np.zeros((400, 500, 3), np.uint8)
    pixels[280:320, 380:420] = 255
    save(tmp_path / "images" / "anna_400_300_40_40.png", pixels)
    save(tmp_path / "images" / "noface.png", noise(80, 64))
    (tmp_path / "images" / "anna.txt").write_text("a face")
    subset = SubsetConfig(
        image_dir=str(tmp_path / "images"),
        face_crop_aug_range=(1.0, 3.0),
        num_repeats=20,
        caption_extension=".txt",
        source="subset 1",
    )
    data = make(subset)
    lit = []
    for batch in data.batches(1, 0):
        assert batch.images_BCHW.shape[1:] == (3, 64, 64)
        for key, caption, image, size_ids in zip(
            batch.keys, batch.captions, batch.images_BCHW, batch.size_ids_B6.tolist(), strict=True
        ):
            if "anna" in key:
                lit.append((image > 0).mean())
                assert caption == "a face" and size_ids == [64, 64, 0, 0, 64, 64]
            else:
                assert caption == "" and size_ids == [64, 80, 6, 0, 64, 64]
    assert min(lit) > 1 / 9 - 0.03 and max(lit) - min(lit) > 0.1  # the crop is up to 3 times as wide as the face
    assert any("face_crop_aug_range has no effect on 1 image, " in note for note in data.plan().notes)


def test_a_face_range_with_buckets_is_noted(tmp_path):
    save(tmp_path / "images" / "anna_40_30_40_40.png", noise(90, 90))
    subset = SubsetConfig(image_dir=str(tmp_path / "images"), face_crop_aug_range=(1.0, 3.0))
    assert any("enable_bucket is on" in note for note in make(subset, **BUCKETS).plan().notes)


# --- broken files -----------------------------------------------------------------------------------------------------
@pytest.fixture
def partly_broken(tmp_path):
    for name in ("a", "b", "c", "d"):
        save(tmp_path / "images" / f"{name}.png", noise(64, 64))
        save(tmp_path / "masks" / f"{name}.png", noise(64, 64))
        (tmp_path / "images" / f"{name}.txt").write_text(f"tag {name}")
    for path in (tmp_path / "images" / "b.png", tmp_path / "masks" / "c.png"):
        path.write_bytes(path.read_bytes()[:300])
    return tmp_path


def test_broken_images_and_masks_stop_the_run_by_name(partly_broken):
    with pytest.raises(ValueError, match=r"2 problems(.|\n)*images/b\.png(.|\n)*masks/c\.png"):
        make(masked(partly_broken / "images", partly_broken / "masks"), kind="masked")


def test_broken_images_are_left_out_when_asked(partly_broken, caplog):
    subset = masked(partly_broken / "images", partly_broken / "masks", caption_extension=".txt", num_repeats=2)
    with caplog.at_level(logging.WARNING):
        data = make(subset, kind="masked", skip_bad_images=True)
    names = sorted(key.rsplit("/", 1)[1] for batch in data.batches(1, 0) for key in batch.keys)
    assert names == ["a.png", "a.png", "d.png", "d.png"] and data.num_train_images == 4
    assert "--skip_bad_images: 2 files" in caplog.text
    assert "images/b.png: the image cannot be read" in caplog.text and "masks/c.png" in caplog.text
    metadata = dataset_metadata(data)
    assert metadata["ss_skipped_images"] == ["b.png", "c.png"]
    assert metadata["ss_dataset_dirs"] == {"images": {"n_repeats": 2, "img_count": 2}}
    assert metadata["ss_tag_frequency"] == {"images": {"tag a": 1, "tag d": 1}}


def test_whole_images_leave_no_trace_of_the_flag(tmp_path):
    save(tmp_path / "images" / "a.png", noise(64, 64))
    subset = SubsetConfig(image_dir=str(tmp_path / "images"))
    assert dataset_metadata(make(subset, skip_bad_images=True)) == dataset_metadata(make(subset))
    assert "ss_skipped_images" not in dataset_metadata(make(subset))


def test_a_folder_of_nothing_but_broken_images_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("no image")
    with pytest.raises(ValueError, match="none of its images can be read"):
        make(SubsetConfig(image_dir=str(tmp_path / "images"), source="subset 1"), skip_bad_images=True)


def test_a_broken_profile_is_noted(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(noise(64, 64)).save(tmp_path / "images" / "a.png", icc_profile=b"nonsense")
    notes = make(SubsetConfig(image_dir=str(tmp_path / "images"))).plan().notes
    assert len(notes) == 1 and "a.png: its colour profile is not used" in notes[0]


# --- captions ---------------------------------------------------------------------------------------------------------
def test_weighted_captions_reach_the_batch(tmp_path):
    save(tmp_path / "images" / "a.png", noise(64, 64))
    subset = SubsetConfig(image_dir=str(tmp_path / "images"), class_tokens="a (red:1.5) [cat]")
    (plain,) = make(subset).batches(1, 0)
    (batch,) = make(subset, weighted_captions=True).batches(1, 0)
    assert plain.token_weights_BNT is None
    weights = [1, 1, 1.5, 1 / 1.1] + [1] * 73
    np.testing.assert_allclose(batch.token_weights_BNT, [[weights]], rtol=1e-6)
    words = make(SubsetConfig(image_dir=str(tmp_path / "images"), class_tokens="a red cat"), weighted_captions=True)
    (unweighted,) = words.batches(1, 0)
    assert unweighted.token_weights_BNT is None
    for ids, expected in zip(batch.token_ids, unweighted.token_ids, strict=True):
        np.testing.assert_array_equal(ids, expected)


def test_brackets_and_weights_are_no_tokens_of_a_weighted_caption(tmp_path):
    save(tmp_path / "images" / "a.png", noise(64, 64))
    subset = SubsetConfig(image_dir=str(tmp_path / "images"), class_tokens="(word:1.2) " * 40)
    assert make(subset, weighted_captions=True).plan().cut_captions == ()
    assert len(make(subset).plan().cut_captions) == 1


def test_weights_that_are_no_numbers_are_all_named(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "images" / f"{name}.png", noise(64, 64))
        (tmp_path / "images" / f"{name}.caption").write_text("x (y:1.2.3)")
    with pytest.raises(ValueError, match=r"a\.png.*1\.2\.3(.|\n)*b\.png"):
        make(SubsetConfig(image_dir=str(tmp_path / "images")), weighted_captions=True)


def test_caption_files_with_the_other_ending_are_noted(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / "images" / f"{name}.png", noise(64, 64))
        (tmp_path / "images" / f"{name}.txt").write_text("text")
    (tmp_path / "images" / "c.caption").write_text("caption")
    (note,) = make(SubsetConfig(image_dir=str(tmp_path / "images"))).plan().notes
    assert "2 images have a .txt file that is not read, since caption_extension is '.caption': a.png, b.png" in note
    assert make(SubsetConfig(image_dir=str(tmp_path / "images"), caption_extension=".txt")).plan().notes == ()
    (tmp_path / "images" / "a.txt").rename(tmp_path / "images" / "a.TXT")
    (note,) = make(SubsetConfig(image_dir=str(tmp_path / "images"), caption_extension=".txt")).plan().notes
    assert "1 image has a .TXT file that is not read" in note


def test_metadata_in_another_encoding(tmp_path):
    save(tmp_path / "images" / "a.png", noise(64, 64))
    table = json.dumps({"a": {"caption": "\u7ea2\u8272\u7684\u732b"}}, ensure_ascii=False)
    subset = SubsetConfig(metadata_file=str(tmp_path / "meta.json"), image_dir=str(tmp_path / "images"))
    (tmp_path / "meta.json").write_bytes(table.encode("utf-16"))
    (batch,) = make(subset, kind="finetuning").batches(1, 0)
    assert batch.captions == ("\u7ea2\u8272\u7684\u732b",)
    (tmp_path / "meta.json").write_bytes(table.encode("gbk"))
    with pytest.raises(ValueError, match=r"meta\.json.*not UTF-8.*as GBK"):
        make(subset, kind="finetuning")
