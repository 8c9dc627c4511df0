"""The plan, the list of suspicious files, the report page and the samples as pictures."""

import base64
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from library.data.dataset import TrainDataset
from library.data.report.image_facts import SIDE, image_facts, near_duplicates
from library.data.report.lint import lint
from library.data.report.plan import CaptionLength
from library.data.report.plan_text import plan_lines, table
from library.data.report.preview import first_samples, to_picture, write_samples
from library.data.report.report_charts import token_chart
from library.data.report.report_page import report_page, write_report
from library.data.run_rng import RunRng
from library.families.sdxl.tokenizers import sdxl_tokenizers
from library.runs.data_preview import show_data
from library.settings.config_util import DatasetConfig, SubsetConfig
from library.settings.flag_groups import RunArgs

HOSTILE = "<script>alert('x')</script> & \"quoted\""


def picture(seed, size=(96, 96)):
    """A smooth coloured picture, unlike that of any other seed."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def train_data(*subsets, **options):
    settings = {"resolution": (64, 64), "batch_size": 2, "enable_bucket": True, "min_bucket_reso": 32}
    settings |= {"max_bucket_reso": 128, "bucket_reso_steps": 32, "source": "data.toml [[datasets]] 1"} | options
    config = DatasetConfig(subsets=subsets, kind="dreambooth", **settings)
    return TrainDataset((config,), sdxl_tokenizers(), RunRng(1))


@pytest.fixture
def messy(tmp_path):
    """A folder with one fault of each kind beside a good image."""
    folder = tmp_path / "10_cat"
    folder.mkdir()
    captions = {}
    for number, name in enumerate(("good", "long", "empty", "mojibake", "lost", "both", "hostile", "twice")):
        picture(number).save(folder / f"{name}.png")
        captions[name] = f"a {name} cat"
    captions |= {"long": "word " * 90, "mojibake": "a caf\u00c3\u00a9", "lost": "caf\ufffd", "hostile": HOSTILE}
    del captions["empty"]
    picture(20).save(folder / "twice.jpg")
    (folder / "copy.png").write_bytes((folder / "good.png").read_bytes())
    picture(0, (200, 190)).save(folder / "near.jpg", quality=60)
    picture(21, (30, 24)).save(folder / "tiny.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(22).save(folder / "turned.jpg", exif=turned)
    clear = picture(23).convert("RGBA")
    clear.putpixel((3, 3), (0, 0, 0, 0))
    clear.save(folder / "clear.png")
    picture(24).convert("RGBA").save(folder / "opaque.png")
    for name in ("copy", "near", "tiny", "turned", "clear", "opaque"):
        captions[name] = name
    for name, caption in captions.items():
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    (folder / "both.caption").write_text("not read")
    return folder


def found(folder, **options):
    """Names of the files in each group of findings."""
    data = train_data(SubsetConfig(image_dir=str(folder), caption_extension=".txt", **options))
    groups = lint(data, data.plan())
    return {
        group.title: sorted(tuple(map(os.path.basename, what.split("\n"))) for what, _ in group.findings)
        for group in groups
    }


def test_every_fault_is_listed_and_nothing_else(messy):
    assert found(messy) == {
        "Unread caption files": [("both.png",)],
        "Empty captions": [("empty.png",)],
        "Captions that are cut": [("long.png",)],
        "Damaged letters in captions": [("lost.png",), ("mojibake.png",)],
        "Enlarged images": [("tiny.png",)],
        "Duplicates": [("copy.png", "good.png")],
        "Near-duplicates": [("copy.png", "near.jpg")],
        "One name, several images": [("twice.jpg", "twice.png")],
        "Rotated by EXIF": [("turned.jpg",)],
        "Transparent images": [("clear.png",)],
    }


def test_a_clean_folder_has_no_findings(tmp_path):
    for number in range(12):
        picture(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"caf\u00e9 number {number}", encoding="utf-8")
    assert found(tmp_path) == {}


def test_a_tiny_image_that_is_not_enlarged_is_told(tmp_path):
    for number, side in enumerate((40, 64)):
        picture(number, (side, 64)).save(tmp_path / f"{side}.png")
    data = train_data(
        SubsetConfig(image_dir=str(tmp_path), class_tokens="x"), resolution=(128, 128), bucket_no_upscale=True
    )
    (group,) = lint(data, data.plan())
    assert group.title == "Tiny images"
    (found,) = group.findings
    assert found == (str(tmp_path / "40.png"), "40 x 64 pixels, where the data set's resolution is 128 x 128")


def test_captions_under_the_other_ending_are_told(tmp_path):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("a caption")
    groups = found(tmp_path)
    assert groups == {"Unread caption files": [("a.png",)], "Empty captions": [("a.png",)]}


@pytest.mark.parametrize("change", ["half size", "other quality", "a bit brighter", "one more line"])
def test_near_duplicates_are_found_through_small_changes(change):
    image = picture(5, (200, 150))
    if change == "half size":
        other = image.resize((100, 75))
    elif change == "other quality":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=30)
        other = Image.open(buffer)
    elif change == "a bit brighter":
        other = image.point(lambda level: min(255, level + 5))
    else:
        other = image.copy()
        other.paste((255, 255, 255), (0, 70, 200, 72))
    images = [image, picture(6), other, image.rotate(180), picture(7)]
    thumbnails = [np.asarray(each.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)) for each in images]
    assert near_duplicates(thumbnails) == [[0, 2]]


def test_near_duplicates_agree_with_comparing_every_pair(monkeypatch):
    monkeypatch.setattr("library.data.report.image_facts._ROWS", 7)
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (20, SIDE, SIDE, 3))
    copies = originals[rng.integers(0, 20, 30)] + rng.integers(-3, 4, (30, SIDE, SIDE, 3))
    flat = np.full((3, SIDE, SIDE, 3), 128)
    thumbnails = list(np.concatenate([originals, copies, flat]).clip(0, 255).astype(np.uint8))
    groups = near_duplicates(thumbnails)
    expected = {}
    for number, thumbnail in enumerate(thumbnails[:50]):
        distance = [np.abs(thumbnail.astype(int) - original).mean() for original in originals]
        expected.setdefault(int(np.argmin(distance)), []).append(number)
    assert sorted(groups) == sorted(group for group in expected.values() if len(group) > 1)
    assert near_duplicates([]) == []


def test_an_image_that_vanishes_before_the_report_is_named(messy):
    data = train_data(SubsetConfig(image_dir=str(messy), caption_extension=".txt"))
    plan = data.plan()
    (messy / "good.png").unlink()
    with pytest.raises(ValueError, match=r"good\.png: the image cannot be read"):
        lint(data, plan)


def test_facts_of_a_truncated_image_are_an_error(tmp_path):
    path = tmp_path / "a.png"
    picture(0).save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"a\.png"):
        image_facts(path)


class Page(HTMLParser):
    """What a browser would make of the page: nesting, texts, embedded pictures, references to elsewhere."""

    VOID = ("meta", "img", "br", "rect")

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.pictures, self.references = [], [], [], []
        self.tags = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        """An element begins."""
        self.tags.add(tag)
        values = dict(attrs)
        if tag == "img":
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(values["src"].partition("base64,")[2]))))
        self.references += [value for name, value in attrs if name in ("href", "src") and value[:5] != "data:"]
        self.references += [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """It ends."""
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        """An element without content."""
        self.tags.add(tag)

    def handle_data(self, data):
        """Text."""
        self.texts.append(data)


def test_the_page_stands_alone_and_escapes_what_files_say(messy, tmp_path):
    hostile_folder = tmp_path / "<b>5_dog&"
    hostile_folder.mkdir()
    picture(30).save(hostile_folder / "<i>.png")
    data = train_data(
        SubsetConfig(image_dir=str(messy), caption_extension=".txt"),
        SubsetConfig(image_dir=str(hostile_folder), class_tokens=HOSTILE),
        SubsetConfig(image_dir="never", num_repeats=0, source="<u>here</u>"),
    )
    plan = data.plan()
    write_report(tmp_path / "r.html", plan, ["10 steps"], lint(data, plan), first_samples(data, 10))
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.references == [] and "url(" not in text and "@import" not in text
    assert page.tags.isdisjoint({"script", "b>", "i", "u", "link", "iframe"})
    assert page.texts.count(HOSTILE) == 2  # its own image and the one with class_tokens
    assert len(data.datasets[0].images) == 16
    # Rotated and transparent images are shown once more, duplicates, near-duplicates and twins in pairs.
    assert len(page.pictures) == 2 + 3 * 2 + 16
    samples = page.pictures[-16:]
    assert {picture.size for picture in samples} <= {bucket.resolution for bucket in data.datasets[0].buckets}
    shown = " ".join(page.texts)
    for expected in ("<b>5_dog&", "<i>.png", "<u>here</u>: left out", "10 steps", "90 tokens, 75 are read", "cut off"):
        assert expected in shown


def test_a_long_list_is_cut_with_its_number(messy, monkeypatch):
    monkeypatch.setattr("library.data.report.report_page.LISTED", 1)
    data = train_data(SubsetConfig(image_dir=str(messy), caption_extension=".txt"))
    plan = data.plan()
    page = Page(report_page(plan, [], lint(data, plan), []))
    assert "and 1 more" in page.texts


def test_a_page_without_captions_or_findings(tmp_path):
    picture(0).save(tmp_path / "a.png")
    subset = SubsetConfig(image_dir=str(tmp_path), class_tokens="x")
    config = DatasetConfig(subsets=(subset,), kind="dreambooth", resolution=(64, 64))
    plan = TrainDataset((config,), (), RunRng(1)).plan()
    texts = Page(report_page(plan, [], [], [])).texts
    assert "not measured" in texts and "Nothing found." in texts


def test_bars_of_the_histogram_add_up():
    lengths = [CaptionLength("x", tokens, 75) for tokens in (0, 4, 5, 75, 76, 79, 400, 1000)]
    titles = re.findall(r"<title>(.*?): (\d+) captions?, (\d+) of them cut</title>", token_chart(lengths))
    counts = {label: (int(count), int(cut)) for label, count, cut in titles}
    assert {label: count for label, count in counts.items() if count[0]} == {
        "0 to 4 tokens": (2, 0),
        "5 to 9 tokens": (1, 0),
        "75 to 79 tokens": (3, 2),
        "300 tokens and more": (2, 2),
    }


def test_samples_are_what_the_model_gets(messy, tmp_path):
    data = train_data(
        SubsetConfig(
            image_dir=str(messy), caption_extension=".txt", flip_aug=True, random_crop=True, caption_dropout_rate=0.5
        )
    )
    batches = list(data.batches(1, 0, max_train_steps=10))
    keys = [key for batch in batches for key in batch.keys]
    captions = [caption for batch in batches for caption in batch.captions]
    pixels = [image for batch in batches for image in batch.images_BCHW]
    count = write_samples(first_samples(data, 10, 9), tmp_path / "out")
    names = sorted(os.listdir(tmp_path / "out"))
    assert count == 9 and len(names) == 18
    for number in range(9):
        stem = f"{number:04d}_{os.path.splitext(os.path.basename(keys[number]))[0]}"
        assert names[2 * number : 2 * number + 2] == [f"{stem}.png", f"{stem}.txt"]
        assert (tmp_path / "out" / f"{stem}.txt").read_text(encoding="utf-8") == captions[number] + "\n"
        written = np.asarray(Image.open(tmp_path / "out" / f"{stem}.png")).transpose(2, 0, 1)
        np.testing.assert_allclose(written / 127.5 - 1, pixels[number], atol=1e-6)


def test_samples_of_an_earlier_run_are_removed_and_other_files_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        picture(0).save(folder / f"{folder.name}.png")
        write_samples(first_samples(train_data(SubsetConfig(image_dir=str(folder))), 1), tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["0000_second.png", "0000_second.txt", "notes.txt"]


@pytest.mark.parametrize("images", ["debug_dataset", ".", "debug_dataset/deeper", "link", "link to each"])
def test_samples_never_come_among_the_data(tmp_path, images):
    """The images have names as samples have, and would be removed as those of an earlier run."""
    out = tmp_path / "out"
    folder = out / (images if not images.startswith("link") else "debug_dataset")
    folder.mkdir(parents=True)
    image = folder / "0000_a.png"
    picture(0).save(image)
    trained = folder
    if images == "link":
        trained = tmp_path / "link"
        trained.symlink_to(folder)
    elif images == "link to each":
        trained = tmp_path / "links"
        trained.mkdir()
        (trained / "b.png").symlink_to(image)
    data = train_data(SubsetConfig(image_dir=str(trained)))
    with pytest.raises(ValueError, match="--debug_dataset: samples would go to .* images are trained from"):
        show_data(data, [], 1, RunArgs(debug_dataset=True), out)
    assert image.exists()
    assert not show_data(data, [], 1, RunArgs(debug_dataset=True), tmp_path / "elsewhere")
    assert show_data(data, [], 1, RunArgs(), out)


def test_pictures_of_all_levels_are_exact():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    model_input = (levels.astype(np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_array_equal(np.asarray(to_picture(model_input.transpose(2, 0, 1))), levels)


def test_long_names_and_odd_letters_in_samples(tmp_path):
    name = "\u732b" * 80 + ".png"
    picture(0).save(tmp_path / name)
    data = train_data(SubsetConfig(image_dir=str(tmp_path), class_tokens="lone \ud83d surrogate"))
    assert write_samples(first_samples(data, 1), tmp_path / "out") == 1
    assert len(os.listdir(tmp_path / "out")) == 2


def test_columns_of_a_table_are_aligned():
    assert table(("name", "n"), [("a", 1), ("long name", 1000)]) == [
        "name          n",
        "a             1",
        "long name  1000",
    ]


def test_plan_counts_images_repeats_crop_and_short_batches(tmp_path):
    train, reg = tmp_path / "train", tmp_path / "reg"
    train.mkdir()
    reg.mkdir()
    for number, size in enumerate([(64, 64), (128, 128), (64, 80), (200, 60)]):
        picture(number, size).save(train / f"{number}.png")
    picture(9, (40, 40)).save(reg / "r.png")
    data = train_data(
        SubsetConfig(image_dir=str(train), num_repeats=3, class_tokens="x"),
        SubsetConfig(image_dir=str(reg), is_reg=True, class_tokens="x"),
    )
    plan = data.plan()
    (dataset,) = plan.datasets
    square = next(bucket for bucket in dataset.buckets if bucket.resolution == (64, 64))
    # Two squares lose nothing, 64 x 80 loses a fifth; the regularisation image is shown 12 times and enlarged.
    assert (square.images, square.samples, square.batches, square.short_batch, square.enlarged) == (4, 21, 11, 1, 1)
    assert square.crop_share == pytest.approx(3 * 0.2 / 21)
    assert plan.images == 5
    assert sum(bucket.batches for bucket in dataset.buckets) == plan.batches_per_epoch == data.batches_per_epoch
    text = "\n".join(plan_lines(plan))
    assert re.search(r"64 x 64 +4 +21 +11 +1 +2\.9% +1\n", text)
    assert re.search(r"train +4 +3 +12\n +reg \(regularisation\) +1 +1 +12\n", text)
    assert "2 of them not full" in text


def test_masks_are_shown_with_the_samples(tmp_path):
    layer = picture(3, (64, 64)).convert("RGBA")
    alpha = Image.new("L", (64, 64), 255)
    alpha.paste(0, (0, 0, 16, 64))
    layer.putalpha(alpha)
    layer.save(tmp_path / "a.png")
    picture(4, (64, 64)).save(tmp_path / "b.png")
    data = train_data(SubsetConfig(image_dir=str(tmp_path), class_tokens="x", alpha_mask=True))
    samples = {os.path.basename(sample.path): sample for sample in first_samples(data, 1)}
    assert np.array_equal(np.asarray(samples["a.png"].mask), np.asarray(alpha))
    assert np.asarray(samples["b.png"].mask).min() == 255
    assert write_samples(iter(samples.values()), tmp_path / "out") == 2
    assert sum(name.endswith(".mask.png") for name in os.listdir(tmp_path / "out")) == 2
    page = Page(report_page(data.plan(), [], [], samples.values()))
    veiled = np.asarray(page.pictures[list(samples).index("a.png")], int)
    plain = np.asarray(samples["a.png"].picture, int)
    assert np.abs(veiled - plain)[:, 20:].mean() < 6  # JPEG
    colour = np.array([0xD6, 0x33, 0x84])
    assert np.abs(veiled[:, :12] - (0.75 * colour + 0.25 * plain[:, :12])).mean() < 6
