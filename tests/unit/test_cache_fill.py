"""Filling a cache: interrupted, killed, by several processes, with batches; always the same bytes in the end."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from library.data.cache.cache_fill import Filling, fill
from library.data.cache.cache_store import MemoryStore
from library.files.npz_files import read_npz
from tests.unit import caching_help
from tests.unit.caching_help import Disk, draw_image, placed

ROOT = Path(__file__).resolve().parents[2]
SIZES = ((80, 70), (120, 70), (70, 120), (64, 64))


def make_images(folder: Path, count: int = 12):
    return [placed(draw_image(folder / f"{n:02d}.png", SIZES[n % len(SIZES)], n), flip_aug=True) for n in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images without a cache; to be copied."""
    path = tmp_path_factory.mktemp("images")
    make_images(path)
    return path


@pytest.fixture
def images(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "images")
    return [placed(path, flip_aug=True) for path in sorted((tmp_path / "images").glob("*.png"))]


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The cache files of an undisturbed run."""
    path = tmp_path_factory.mktemp("undisturbed") / "images"
    shutil.copytree(folder, path)
    cache = Disk([placed(image, flip_aug=True) for image in sorted(path.glob("*.png"))])
    assert cache.fill() == 12
    return cache.files()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("start", [0, 3, 1001])
def test_batches_and_beginnings_change_nothing(images, expected, batch_size: int, start: int) -> None:
    cache = Disk(images)
    assert cache.fill(batch_size, start=start) == 12
    assert sorted(cache.encoded) == [image.path.name for image in images], "each of them once"
    assert cache.files() == expected


def test_a_batch_has_one_bucket_only(images) -> None:
    seen = []

    def encode(items):
        seen.append({item.image.placement.bucket for item in items})
        return [caching_help.entry_of(item) for item in items]

    filling = Filling("latents", lambda item: item, encode, lambda item: item.image.placement.bucket, 4, 2)
    fill(list(Disk(images).items.values()), MemoryStore(), filling)
    assert [len(buckets) for buckets in seen] == [1] * len(seen)


def test_an_interrupted_run_goes_on_where_it_stopped(images, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Disk(images)
    encode = caching_help.encode

    def interrupted(pixels):
        if len(first.encoded) == 6:
            raise KeyboardInterrupt
        return encode(pixels)

    monkeypatch.setattr(caching_help, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        first.fill()
    monkeypatch.setattr(caching_help, "encode", encode)
    left = first.files()
    assert 0 < len(left) <= 6
    second = Disk(images)
    assert second.fill() == len(second.encoded) == 12 - len(left)
    assert second.files() == expected


def start_filling(folder: Path, pause: float, start: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.unit.caching_help", str(folder), str(pause), str(start)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("after", [1, 5])
def test_a_killed_run_leaves_whole_files_and_the_next_the_same_bytes(images, expected, after: int) -> None:
    folder = images[0].path.parent
    process = start_filling(folder, 0.1)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("[0-9]*.npz"))) < after and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = {path.name: path.read_bytes() for path in folder.glob("[0-9]*.npz")}
    assert after <= len(left) < 12, "killed in the middle"
    for name, data in left.items():
        assert data == expected[name]
    again = Disk(images)
    assert again.fill() == 12 - len(left)
    assert {name: data for name, data in again.files().items() if not name.startswith(".")} == expected


def test_what_a_killed_run_left_half_written_is_removed_when_it_is_old(images) -> None:
    old, young = (images[0].path.with_name(f".part-{name}.npz") for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    Disk(images).fill()
    assert not old.exists()
    assert young.exists(), "another process may be writing it"


def test_two_processes_fill_one_cache(images, expected) -> None:
    folder = images[0].path.parent
    processes = [start_filling(folder, 0.05, start) for start in (0, 6)]
    made = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert sum(made) >= 12
    assert Disk(images).fill() == 0
    assert Disk(images).files() == expected


def test_what_another_process_makes_meanwhile_is_not_made_again(images, expected, monkeypatch) -> None:
    ours, others = Disk(images), Disk(images)
    first_written = threading.Event()
    made_by_others: list[int] = []
    put, entry_of = ours.store.put, caching_help.entry_of

    def put_and_tell(item, entry) -> None:
        put(item, entry)
        first_written.set()

    def others_work_before_the_second(item):
        if len(ours.encoded) == 2 and not others.encoded:
            assert first_written.wait(60)
            made_by_others.append(others.fill(start=6))
        return entry_of(item)

    monkeypatch.setattr(ours.store, "put", put_and_tell)
    monkeypatch.setattr(caching_help, "entry_of", others_work_before_the_second)
    made = ours.fill()
    assert made_by_others == [11], "all but the one that was there"
    assert 2 <= made < 12, "those that had not been read ahead were found"
    assert Disk(images).files() == expected


def test_threads_may_put_two_sizes_into_one_file(tmp_path: Path) -> None:
    path = draw_image(tmp_path / "a.png", (200, 200))
    cache = Disk([placed(path, [(side, side)]) for side in range(32, 160, 32)])
    items = list(cache.items.values())
    threads = [threading.Thread(target=cache.store.put, args=(i, caching_help.entry_of(i))) for i in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.store.missing(items).items == []


def test_latents_that_are_not_numbers_stop_with_the_images_name(images, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = caching_help.encode

    def overflows(pixels):
        posterior = encode(pixels)
        posterior.mean[0, 0, 0, 0] = np.nan
        return posterior

    monkeypatch.setattr(caching_help, "encode", overflows)
    cache = Disk(images[:1])
    with pytest.raises(ValueError, match=r"00\.png: the VAE gives latents that are not numbers"):
        cache.fill()
    assert cache.files() == {}


def test_an_image_that_broke_since_is_named_and_what_was_made_stays(images) -> None:
    cache = Disk(images)
    images[-1].path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"11\.png"):
        cache.fill()
    left = cache.files()
    assert left != {}
    assert Disk(images[:-1]).fill() == 11 - len(left)


def test_a_file_that_cannot_be_written_is_named(images) -> None:
    cache = Disk(images)
    (images[0].path.parent / "00_0080x0070_sdxl.npz" / "in the way").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"00_0080x0070_sdxl\.npz: could not be written"):
        cache.fill()


def test_files_are_whole_whatever_is_written_beside(images, expected) -> None:
    cache = Disk(images)
    cache.fill()
    for item in cache.items.values():
        assert set(read_npz(item.file, 1 << 20)) >= {"latents", "latents_flipped", "fingerprint"}
    assert [path.name for path in images[0].path.parent.glob(".part*")] == []


def test_a_cache_that_is_emptied_while_it_is_made_is_an_error(images, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Disk(images[:1])
    (item,) = cache.items.values()
    note = cache.store._note
    monkeypatch.setattr(cache.store, "_note", lambda *args: note(*args) or item.file.unlink())
    with pytest.raises(ValueError, match="another program"):
        cache.fill()
