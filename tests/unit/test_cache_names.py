"""Names of cache files: kohya's where they can be, and never one for two images."""

import itertools
import os
import random
from pathlib import Path

from library.data.cache.cache_names import MAX_NAME_BYTES, cache_stems, latents_name, text_outputs_name

LATENTS = "_sdxl.npz"


def test_names_are_kohyas() -> None:
    stems = cache_stems([Path("d/a.png"), Path("d/b.c.jpg"), Path("e/a.jpg"), Path("d/two words \u732b.webp")])
    assert [latents_name(stem, (640, 48), LATENTS) for stem in stems.values()] == [
        "a_0640x0048_sdxl.npz",
        "b.c_0640x0048_sdxl.npz",
        "a_0640x0048_sdxl.npz",
        "two words \u732b_0640x0048_sdxl.npz",
    ]
    assert text_outputs_name("a", "_te_outputs.npz") == "a_te_outputs.npz"


def test_images_of_one_stem_keep_their_ending() -> None:
    stems = cache_stems([Path("a.png"), Path("a.jpg"), Path("B.png"), Path("b.webp"), Path("a.png.png"), Path("c.png")])
    assert list(stems.values()) == ["a.png", "a.jpg", "B.png", "b.webp", "a.png.png", "c"]


def test_no_two_images_of_a_folder_share_a_name() -> None:
    """Any set of images with endings among their names."""
    drawn = random.Random(1)
    names = ["".join(parts) for n in (1, 2, 3) for parts in itertools.product("aA", *[(".png", ".jpg", ".b")] * n)]
    for _ in range(500):
        images = [Path("d", name) for name in drawn.sample(names, drawn.randint(1, 12))]
        stems = cache_stems(images)
        files = [latents_name(stem, (64, 64), LATENTS).casefold() for stem in stems.values()]
        # Images that differ in case only can be together only where the file system tells their caches apart too.
        assert len(set(files)) == len({path.name.casefold() for path in images})


def test_long_names_fit_and_stay_apart() -> None:
    longest = [Path("\u732b" * 83 + end + ".png") for end in ("a", "b")] + [Path("x" * 200 + ".png")]
    names = [latents_name(stem, (64, 64), LATENTS) for stem in cache_stems(longest).values()]
    assert len(set(names)) == 3
    assert max(len(os.fsencode(name)) for name in names) <= MAX_NAME_BYTES
    assert names[2] == "x" * 200 + "_0064x0064_sdxl.npz"
