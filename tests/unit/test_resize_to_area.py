"""Smaller copies of images."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.curation.resize_to_area import fit_within, parse_resolutions, size_within
from tools.resize_images_to_resolution import main


def test_sizes_fit_and_keep_their_shape():
    rng = random.Random(0)
    for _ in range(2000):
        size = rng.randint(1, 6000), rng.randint(1, 6000)
        area = rng.randint(1, 2048) * rng.randint(1, 2048)
        width, height = size_within(size, area)
        assert 1 <= width <= size[0] and 1 <= height <= size[1]
        if min(width, height) > 1:
            assert width * height <= area
            assert (width, height) == size or (width + 1) * (height + 1) > area  # no smaller than need be
            assert abs(width / height - size[0] / size[1]) <= size[0] / size[1] / min(width, height)
    assert size_within((300, 200), 60_000) == (300, 200)


def test_a_wide_image_stays_wide_and_upright():
    """The original exchanges width and height here."""
    image = np.zeros((100, 400, 3), np.uint8)
    image[:, :100] = 200
    smaller = fit_within(image, 10_000)
    assert smaller.shape == (50, 200, 3)
    assert (smaller[:, :49] == 200).all() and (smaller[:, 51:] == 0).all()


def test_sides_are_cut_at_the_centre():
    image = np.arange(11 * 14, dtype=np.uint8).reshape(11, 14, 1).repeat(3, 2)
    assert (fit_within(image, 10**6, divisible_by=4) == image[1:9, 1:13]).all()
    with pytest.raises(ValueError, match="11 x|14 x"):
        fit_within(image, 10**6, divisible_by=12)


def test_resolutions():
    assert parse_resolutions("512x512, 3X4") == {"512x512": 262144, "3X4": 12}
    with pytest.raises(ValueError, match="'512', '0x3', '', 'ax2'"):
        parse_resolutions("512,0x3,,ax2")


def save(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3).astype(np.uint8)
    Image.fromarray(rows).save(path)


def sizes(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: Image.open(path).size for path in folder.iterdir() if path.suffix in (".png", ".jpg")}


def test_program(tmp_path):
    source, target = tmp_path / "in", tmp_path / "new" / "out"
    save(source / "wide [1].png", (400, 100))
    save(source / "small.JPG", (20, 30))
    (source / "wide [1].txt").write_text("a caption")
    (source / "notes.md").write_text("notes")
    (source / "folder").mkdir()
    argv = [str(source), str(target), "--max_resolution", "100x100,20x20", "--save_as_png", "--copy_associated_files"]
    assert main(argv) == 0
    assert sizes(target) == {
        "wide [1]+100x100.png": (200, 50),
        "wide [1]+20x20.png": (40, 10),
        "small+100x100.png": (20, 30),
        "small+20x20.png": (16, 24),
    }
    others = {path.name for path in target.iterdir()} - set(sizes(target))
    assert others == {"notes.md", "wide [1].txt", "wide [1]+100x100.txt", "wide [1]+20x20.txt"}
    original = np.array(Image.open(source / "wide [1].png"))
    assert (np.array(Image.open(target / "wide [1]+20x20.png")) == fit_within(original, 400)).all()


def test_program_names_what_it_cannot_do(tmp_path, capsys):
    source, target = tmp_path / "in", tmp_path / "out"
    save(source / "good.png", (40, 40))
    (source / "bad1.png").write_bytes(b"no image")
    (source / "bad2.jpg").write_bytes(b"")
    assert main([str(source), str(target), "--max_resolution", "20x20"]) == 1
    error = capsys.readouterr().err
    assert "bad1.png" in error and "bad2.jpg" in error
    assert [path.name for path in target.iterdir()] == ["good+20x20.jpg"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_resolution=512"], "'512' is not WIDTHxHEIGHT"),
        (["--divisible_by=0"], "it has to be 1 or more"),
        ([], "their copies would have one name"),
    ],
)
def test_wrong_options_before_anything_is_written(tmp_path, capsys, options, message):
    save(tmp_path / "in" / "a.png", (40, 40))
    save(tmp_path / "in" / "a.bmp", (40, 40))
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_same_folder_is_refused(tmp_path, capsys):
    save(tmp_path / "a.png", (40, 40))
    assert main([str(tmp_path), str(tmp_path / "x" / "..")]) == 1
    assert "another folder" in capsys.readouterr().err
