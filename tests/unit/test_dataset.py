"""Data sets of all three forms, from files to batches."""

import json
import logging

import numpy as np
import pytest

from library.data.bucketed import balance_repeats
from library.data.images.image_util import load_rgb, to_model_input
from library.data.report.dataset_metadata import dataset_metadata, folder_form_metadata
from library.data.report.plan_text import plan_lines
from library.data.sample import sample_pixels, size_ids
from library.settings.config_util import SubsetConfig
from tests.unit.dataset_help import SIZES, captions_by_name, config, draw_images, subset, train_data

BUCKETS = {"enable_bucket": True, "min_bucket_reso": 32, "max_bucket_reso": 128, "bucket_reso_steps": 32}


def everything(data, epoch=1, start_index=0, **options):
    """All that a batch holds, comparable with ==."""
    return [
        (
            batch.index,
            batch.keys,
            batch.captions,
            batch.images_BCHW.tobytes(),
            [ids.tobytes() for ids in batch.token_ids],
            batch.size_ids_B6.tolist(),
            batch.loss_weights_B.tolist(),
        )
        for batch in data.batches(epoch, start_index, **options)
    ]


def test_class_and_identifier_with_regularisation_images(tmp_path):
    train = draw_images(tmp_path / "train", {"a": (80, 80), "b": (90, 80)})
    reg = draw_images(tmp_path / "reg", {"r1": (80, 80), "r2": (80, 90), "r3": (80, 80)})
    data = train_data(
        config(
            subset(train, class_tokens="sks dog", num_repeats=4),
            subset(reg, class_tokens="dog", is_reg=True),
            prior_loss_weight=0.25,
        )
    )
    samples = [
        (key.rsplit("/", 1)[1], caption, weight)
        for batch in data.batches(1, 0)
        for key, caption, weight in zip(batch.keys, batch.captions, batch.loss_weights_B.tolist(), strict=True)
    ]
    expected = [("a.png", "sks dog", 1.0), ("b.png", "sks dog", 1.0)] * 4
    expected += [("r1.png", "dog", 0.25), ("r2.png", "dog", 0.25)] * 3 + [("r3.png", "dog", 0.25)] * 2
    assert sorted(samples) == sorted(expected)
    assert (data.num_train_images, data.num_reg_images, data.batches_per_epoch) == (8, 3, 8)


@pytest.mark.parametrize(
    ("given", "wanted", "expected"),
    [
        ([1, 1, 1], 20, [7, 7, 6]),
        ([10, 10, 10], 20, [10, 10, 0]),
        ([3], 2, [3]),
        ([2, 3], 10, [5, 5]),
        ([], 5, []),
        ([2, 2], 0, [0, 0]),
    ],
)
def test_regularisation_images_are_balanced(given, wanted, expected):
    assert balance_repeats(given, wanted) == expected


def test_caption_files_beside_the_images(tmp_path):
    folder = draw_images(tmp_path / "train")
    (folder / "square.txt").write_text("a square\nnot used", encoding="utf-8")
    (folder / "wide.txt").write_text("\ufeffa wide one", encoding="utf-8")
    (folder / "tall.caption").write_text("wrong ending", encoding="utf-8")
    data = train_data(config(subset(folder, caption_extension=".txt", class_tokens="thing")))
    captions = captions_by_name(data)
    assert captions == {"square.png": "a square", "wide.png": "a wide one", "tall.png": "thing", "big.png": "thing"}


def test_images_are_found_by_ending_without_case_and_not_in_subfolders(tmp_path):
    folder = draw_images(tmp_path / "train", {"a": (64, 64)}, ".PNG")
    draw_images(folder, {"b": (64, 64)}, ".JpEg")
    draw_images(folder / "deeper", {"c": (64, 64)})
    for name in ("notes.md", "._a.PNG", ".hidden.png"):
        (folder / name).write_text("no image")
    keys = [key for batch in train_data(config(subset(folder))).batches(1, 0) for key in batch.keys]
    assert sorted(key.rsplit("/", 1)[1] for key in keys) == ["a.PNG", "b.JpEg"]


def test_images_in_other_formats_are_named(tmp_path, caplog):
    folder = draw_images(tmp_path / "train", {"a": (64, 64)})
    for name in ("b.gif", "c.HEIC", "d.tif", "notes.md"):
        (folder / name).write_bytes(b"anything")
    with caplog.at_level(logging.WARNING):
        assert train_data(config(subset(folder))).num_train_images == 1
    assert "3 images in" in caplog.text and "are read: b.gif, c.HEIC, d.tif" in caplog.text


def test_links_that_lead_nowhere_are_broken_images_and_captions(tmp_path):
    folder = draw_images(tmp_path / "train", {"a": (64, 64), "b": (64, 64)})
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "gone.png").symlink_to("not_there.png")
    (folder / "a.caption").symlink_to("not_there.caption")
    (folder / "linked.png").symlink_to("b.png")
    with pytest.raises(ValueError) as error:
        train_data(config(subset(folder)))
    assert str(error.value).count("cannot be read") == 2
    for words in ("loop.png: the image cannot", "gone.png: the image cannot", "a.caption"):
        assert words in str(error.value)


def test_all_problems_are_told_at_once(tmp_path):
    good = draw_images(tmp_path / "good", dict.fromkeys(("one", "two", "cut", "fake", "latin"), (64, 64)))
    (good / "cut.png").write_bytes((good / "cut.png").read_bytes()[:200])
    (good / "fake.png").write_text("text")
    (good / "latin.caption").write_bytes(b"caf\xe9")
    (tmp_path / "meta.json").write_text(json.dumps({"nowhere": {"caption": "x"}, "good/one": {"caption": 3}}))
    (tmp_path / "gone.json").write_text(json.dumps({"nowhere": {"caption": "x"}}))
    with pytest.raises(ValueError) as error:
        train_data(
            config(subset(good), subset(tmp_path / "missing")),
            config(SubsetConfig(metadata_file=str(tmp_path / "meta.json"), source="meta subset")),
            config(SubsetConfig(metadata_file=str(tmp_path / "gone.json"), source="gone subset")),
            config(subset(good), resolution=(100, 64), source="odd dataset", size_step=32),
        )
    text = str(error.value)
    for expected in (
        "cut.png: the image cannot be read",
        "fake.png: the image cannot be read",
        "latin.caption: the file is not UTF-8 (byte 0xe9 at position 3)",
        "missing' does not exist",
        "meta subset: metadata_file",
        "caption of 'good/one' has to be text, not 3",
        "gone subset",
        "key 'nowhere' has no image",
        "odd dataset: resolution 100 x 64 has to be a multiple of 32",
    ):
        assert expected in text
    assert "one.png" not in text and "two.png" not in text


@pytest.mark.parametrize("is_reg", [False, True])
def test_an_epoch_that_fits_no_memory_is_refused(tmp_path, is_reg):
    train, other = draw_images(tmp_path / "train", {"a": (64, 64)}), draw_images(tmp_path / "other")
    long = subset(other, num_repeats=1_000_000_000_000, is_reg=is_reg)
    with pytest.raises(ValueError) as error:
        train_data(config(subset(train), long), config(subset(tmp_path / "gone")))
    for words in (
        "one epoch would have 4,000,000,000,001 samples, at most 10,000,000 are possible",
        "[[subsets]] other, 4 images with num_repeats = 1000000000000: lower it",
        "gone' does not exist",
    ):
        assert words in str(error.value)


def test_nothing_to_train_is_an_error_that_says_why(tmp_path, caplog):
    folder = draw_images(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.json").write_text("{}")
    for configs, reason in (
        ((), r"no \[\[datasets\]\]"),
        ((config(),), r"has no \[\[datasets.subsets\]\]"),
        ((config(subset(folder, num_repeats=0)),), r"left out with all images of '.*a', since num_repeats is 0"),
        ((config(subset(tmp_path / "empty")),), r"'.*empty' has no images \(\.png"),
        ((config(SubsetConfig(metadata_file=str(tmp_path / "empty.json"))),), "names no images"),
    ):
        with pytest.raises(ValueError, match=reason) as error:
            train_data(*configs)
        assert not configs or "there is no subset to train" in str(error.value)
    with pytest.raises(ValueError, match="no training images"):
        train_data(config(subset(folder, is_reg=True), subset(tmp_path / "empty")))
    assert "empty' has no images" in caplog.text  # why there are none


def test_what_is_left_out_is_logged(tmp_path, caplog):
    folder = draw_images(tmp_path / "a")
    other = draw_images(tmp_path / "b")
    (tmp_path / "c").mkdir()
    again = SubsetConfig(image_dir=f"{folder}/", num_repeats=3)
    dropped = (subset(other, num_repeats=0), again, subset(tmp_path / "c"))
    with caplog.at_level(logging.WARNING):
        data = train_data(config(subset(folder), *dropped), config(source="second", notes=("about a setting",)))
    assert data.num_train_images == 4
    for words in ("num_repeats is 0", "already in this dataset", "has no images", "second: has no", "about a setting"):
        assert caplog.text.count(words) == 1
        assert any(words in note for note in data.plan().notes)
    assert [len(scans) for scans in (dataset.scans for dataset in data.datasets)] == [1, 0]


def test_batches_have_one_size_and_the_image_fills_it(tmp_path):
    folder = draw_images(tmp_path / "train")
    data = train_data(config(subset(folder, num_repeats=3), **BUCKETS))
    seen = []
    for batch in data.batches(1, 100):
        count = len(batch.keys)
        assert 1 <= count <= 2 and batch.images_BCHW.dtype == np.float32
        assert batch.images_BCHW.shape == (count, 3, *batch.size_ids_B6[0, 4:].astype(int))
        assert [ids.shape for ids in batch.token_ids] == [(count, 1, 77)] * 2
        assert batch.size_ids_B6.shape == (count, 6) and batch.size_ids_B6.dtype == np.float32
        assert np.abs(batch.images_BCHW).max() <= 1
        seen += batch.keys
    assert sorted(seen) == sorted(str(folder / f"{name}.png") for name in SIZES for _ in range(3))
    assert [batch.index for batch in data.batches(1, 100)] == list(range(100, 100 + data.batches_per_epoch))


def test_pixels_are_the_images_own(tmp_path):
    folder = draw_images(tmp_path / "train", {"a": (64, 64)})
    (batch,) = train_data(config(subset(folder))).batches(1, 0)
    np.testing.assert_array_equal(batch.images_BCHW[0], to_model_input(load_rgb(folder / "a.png")))
    assert batch.size_ids_B6.tolist() == [[64, 64, 0, 0, 64, 64]]


def test_size_ids_of_plain_and_mirrored_images():
    assert size_ids((2000, 1000), (1024, 1024), flipped=False) == (1000, 2000, 256, 0, 1024, 1024)
    assert size_ids((1000, 2000), (1024, 1024), flipped=False) == (2000, 1000, 0, 256, 1024, 1024)
    # width 896 in a bucket of 1024: left 64, right 960; 100 wide and 105 high in 64: left 0, right 64
    assert size_ids((7, 8), (1024, 1024), flipped=True) == (8, 7, 0, 64, 1024, 1024)
    # 5:7 in 100 x 100: width 71.43, left 14, right 85.43, mirrored left 14.57, which is cut to 14
    assert size_ids((5, 7), (100, 100), flipped=True)[3] == 14


def test_random_crop_without_buckets_cuts_at_the_images_own_scale(tmp_path):
    folder = draw_images(tmp_path / "train", {"a": (200, 150)})
    data = train_data(config(subset(folder, random_crop=True, flip_aug=True, num_repeats=8)))
    pixels = to_model_input(load_rgb(folder / "a.png"))
    windows = np.lib.stride_tricks.sliding_window_view(pixels[0], (64, 64))
    for batch in data.batches(1, 0):
        assert batch.size_ids_B6.tolist() == [[64, 64, 0, 0, 64, 64]] * len(batch.keys)
        for image in batch.images_BCHW[:, 0]:
            assert any((windows == view).all(axis=(2, 3)).any() for view in (image, image[:, ::-1]))


def test_an_image_smaller_than_the_resolution_is_enlarged(tmp_path):
    folder = draw_images(tmp_path / "train", {"a": (40, 30)})
    for options in ({}, {"random_crop": True}):
        (batch,) = train_data(config(subset(folder, **options))).batches(1, 0)
        assert batch.images_BCHW.shape == (1, 3, 64, 64)
        assert batch.size_ids_B6.tolist() == [[30, 40, 8, 0, 64, 64]]


def test_a_strip_that_would_take_gigabytes_is_refused_by_name(tmp_path):
    folder = draw_images(tmp_path / "train", {"thin": (1, 60000), "slim": (4, 400)})
    with pytest.raises(ValueError, match="1 x 60000 pixels is too thin: it would be enlarged to 64 x 3840000") as error:
        train_data(config(subset(folder)))
    assert "thin.png" in str(error.value) and "slim" not in str(error.value)


def test_the_seed_decides_everything_random(tmp_path):
    folder = draw_images(tmp_path / "train")
    varied = {"flip_aug": True, "random_crop": True, "shuffle_caption": True, "class_tokens": "a, b, c, d, e"}
    settings = config(subset(folder, num_repeats=4, **varied), **BUCKETS)
    first = everything(train_data(settings))
    assert first == everything(train_data(settings))
    assert first == everything(train_data(settings, workers=2))
    assert first != everything(train_data(settings, seed=2))
    data = train_data(settings)
    assert first != everything(data, epoch=2)
    assert first == everything(data)  # epoch 1 again, after epoch 2
    assert everything(data, skip=3) == first[3:]


def test_each_sample_is_drawn_on_its_own(tmp_path):
    folder = draw_images(tmp_path / "train", {"a": (64, 64)})
    data = train_data(config(subset(folder, flip_aug=True, num_repeats=64), batch_size=8))
    plain = to_model_input(load_rgb(folder / "a.png"))
    flipped = [not np.array_equal(image, plain) for batch in data.batches(1, 0) for image in batch.images_BCHW]
    assert 16 < sum(flipped) < 48  # four standard deviations around 32


def test_batches_of_several_datasets_are_shuffled_together(tmp_path):
    one, two = draw_images(tmp_path / "one"), draw_images(tmp_path / "two")
    data = train_data(
        config(subset(one, num_repeats=5), batch_size=1), config(subset(two, num_repeats=5), resolution=(96, 64))
    )
    widths = [batch.images_BCHW.shape[3] for batch in data.batches(1, 0)]
    assert sorted(widths) == [64] * 20 + [96] * 10
    assert widths != sorted(widths) and widths != sorted(widths, reverse=True)


def test_an_image_that_vanishes_is_named_also_from_a_worker(tmp_path):
    folder = draw_images(tmp_path / "train")
    for workers in (0, 2):
        data = train_data(config(subset(folder)), workers=workers)
        (folder / "tall.png").unlink()
        with pytest.raises(ValueError, match=r"tall\.png"):
            list(data.batches(1, 0))
        draw_images(folder)
    data = train_data(config(subset(folder)))
    draw_images(folder, {"tall": (80, 140)})
    with pytest.raises(ValueError, match=r"tall\.png.*80 x 140 pixels now"):
        list(data.batches(1, 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_any_error_of_a_worker_tells_its_files(tmp_path, workers, monkeypatch):
    folder = draw_images(tmp_path / "train")
    data = train_data(config(subset(folder), batch_size=1), workers=workers)

    def exhausted(image, drawn):
        if image.path.name == "tall.png":
            raise MemoryError("no memory left")
        return sample_pixels(image, drawn)

    monkeypatch.setattr("library.data.batch_images.sample_pixels", exhausted)
    with pytest.raises(MemoryError) as error:
        list(data.batches(1, 0))
    (note,) = error.value.__notes__
    assert note.endswith(f"was made from {folder / 'tall.png'}")


def test_an_epoch_can_be_left_early(tmp_path):
    folder = draw_images(tmp_path / "train")
    data = train_data(config(subset(folder, num_repeats=50)), workers=2)
    for batch in data.batches(1, 0):
        assert batch.index == 0
        break


def test_plan(tmp_path):
    folder = draw_images(tmp_path / "10_cat")
    (folder / "wide.txt").write_text("word " * 80)
    (folder / "tall.txt").write_text("short")
    data = train_data(config(subset(folder, num_repeats=2, caption_extension=".txt"), **BUCKETS))
    plan = data.plan()
    assert plan.batches_per_epoch == data.batches_per_epoch == len(list(data.batches(1, 0)))
    assert sum(bucket.samples for bucket in plan.datasets[0].buckets) == 8
    assert [(cut.path.rsplit("/", 1)[1], cut.tokens, cut.limit) for cut in plan.cut_captions] == [("wide.png", 80, 75)]
    assert sorted(path.rsplit("/", 1)[1] for path in plan.missing_captions) == ["big.png", "square.png"]
    text = "\n".join(plan_lines(plan))
    for expected in (
        "64 x 64",
        "2 images have no caption",
        "wide.png (80",
    ):
        assert expected in text


def test_the_plan_of_one_image_is_in_the_singular(tmp_path):
    data = train_data(config(subset(draw_images(tmp_path / "cat", {"a": (64, 64)}))))
    text = "\n".join(plan_lines(data.plan()))
    assert "1 batch per epoch" in text and "1 image has no caption" in text


def test_metadata_for_the_saved_file(tmp_path):
    train, reg = draw_images(tmp_path / "10_cat"), draw_images(tmp_path / "1_animal", {"r": (64, 64)})
    (train / "wide.caption").write_text("Cat, sitting")
    settings = config(
        subset(train, class_tokens="cat", num_repeats=2), subset(reg, is_reg=True, class_tokens="animal"), **BUCKETS
    )
    data = train_data(settings, config(subset(train, class_tokens="cat"), resolution=(96, 96)))
    metadata = dataset_metadata(data)
    assert json.loads(json.dumps(metadata)) == metadata
    assert metadata["ss_num_train_images"] == 12 and metadata["ss_num_reg_images"] == 1
    assert metadata["ss_num_batches_per_epoch"] == data.batches_per_epoch
    assert metadata["ss_dataset_dirs"] == {
        "10_cat": {"n_repeats": 2, "img_count": 4},
        "10_cat (2)": {"n_repeats": 1, "img_count": 4},
    }
    assert metadata["ss_tag_frequency"] == {"10_cat": {"cat": 4, "sitting": 1}, "1_animal": {"animal": 1}}
    first, second = metadata["ss_datasets"]
    assert first["bucket_info"]["buckets"]["0"] == {"resolution": [32, 96], "count": 2}
    assert sum(bucket["count"] for bucket in first["bucket_info"]["buckets"].values()) == 16
    assert second["bucket_info"] is None and second["min_bucket_reso"] is None
    assert first["subsets"][1] | {"is_reg": True, "image_dir": "1_animal", "img_count": 1} == first["subsets"][1]


def test_metadata_of_the_folder_form(tmp_path):
    train, reg = draw_images(tmp_path / "10_cat"), draw_images(tmp_path / "1_animal", {"r": (64, 64)})
    options = {"flip_aug": True, "keep_tokens": 2}
    folders = (
        subset(train, class_tokens="cat", num_repeats=10, **options),
        subset(reg, is_reg=True, class_tokens="animal", **options),
    )
    entries = folder_form_metadata(train_data(config(*folders, **BUCKETS)), accumulation_steps=3)
    assert (entries["ss_batch_size_per_device"], entries["ss_total_batch_size"]) == (2, 6)
    assert str(entries["ss_resolution"]) == "(64, 64)"
    assert [entries[f"ss_{name}"] for name in ("flip_aug", "color_aug", "keep_tokens")] == [True, False, 2]
    assert entries["ss_dataset_dirs"] == {"10_cat": {"n_repeats": 10, "img_count": 4}}
    assert entries["ss_reg_dataset_dirs"] == {"1_animal": {"n_repeats": 1, "img_count": 1}}
    assert entries["ss_tag_frequency"] == {"10_cat": {"cat": 4}, "1_animal": {"animal": 1}}
    assert (entries["ss_min_bucket_reso"], entries["ss_max_bucket_reso"]) == (32, 128)
    assert sum(bucket["count"] for bucket in entries["ss_bucket_info"]["buckets"].values()) == 80
    assert "ss_datasets" not in entries
    plain = folder_form_metadata(train_data(config(*folders)), accumulation_steps=1)
    assert (plain["ss_bucket_info"], plain["ss_min_bucket_reso"]) == ("null", None)
