"""Importing data sets: every form that is read, names that are refused, interruptions."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from library.curation import dataset_import
from library.curation.dataset_import import ImportFolder
from library.data.scan.scan import Findings, scan_datasets
from library.files.safe_names import safe_relative_name
from library.settings.config_util import load_dataset_configs
from tests.unit.hub_server import COMMIT, NAME, hub_with
from tools import convert_hf_dataset
from tools.hf_dataset_source import open_source

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ("PNG", "JPEG", "WEBP")


@pytest.fixture(scope="module")
def hf() -> Any:
    """The datasets library."""
    return pytest.importorskip("datasets")


def picture(number: int, kind: str | None = None, size: tuple[int, int] = (24, 16)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (number * 30 % 256, 80, 90)).save(stream, kind or FORMATS[number % 3])
    return stream.getvalue()


def data_set(hf: Any, count: int = 6, **columns: list[Any]) -> Any:
    """Rows with images in three formats, a text, tags and a label."""
    table = {
        "image": [{"bytes": picture(number), "path": f"p{number}.x"} for number in range(count)],
        "text": [f" caption {number}\n" for number in range(count)],
        "tags": [["red", f"t{number}"] for number in range(count)],
        "kind": [number % 2 for number in range(count)],
    }
    features = {
        "image": hf.Image(),
        "text": hf.Value("string"),
        "tags": hf.List(hf.Value("string")),
        "kind": hf.ClassLabel(names=["cat", "dog"]),
    }
    features |= {name: hf.Image() if name == "other" else hf.Value("string") for name in columns if name != "image"}
    return hf.Dataset.from_dict(table | columns, features=hf.Features(features))


def convert(source: Path | str, target: Path, *options: str) -> int:
    return convert_hf_dataset.main([str(source), "--output_dir", str(target), *options])


def metadata(target: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((target / "metadata.json").read_text(encoding="utf-8"))
    return table


def bytes_below(target: Path) -> dict[str, bytes]:
    return {
        path.relative_to(target).as_posix(): path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file()
    }


def save_as(hf: Any, form: str, place: Path) -> Path:
    data = data_set(hf)
    if form == "parquet file":
        data.to_parquet(place / "a.parquet")
        return place / "a.parquet"
    if form == "parquet folder":
        (place / "set" / "data").mkdir(parents=True)
        data.to_parquet(place / "set" / "data" / "train-00000-of-00001.parquet")
    elif form == "saved":
        data.save_to_disk(str(place / "set"))
    elif form == "imagefolder":
        (place / "set").mkdir()
        for number in range(6):
            (place / "set" / f"{number}.{FORMATS[number % 3].lower()}").write_bytes(picture(number))
        lines = [f"{number}.{FORMATS[number % 3].lower()},caption {number}" for number in range(6)]
        (place / "set" / "metadata.csv").write_text("\n".join(["file_name,text", *lines]) + "\n")
    else:
        (place / "set").mkdir()
        with tarfile.open(place / "set" / "a.tar", "w") as archive:
            for number in range(6):
                for ending, content in (("img.png", picture(number)), ("txt", f"caption {number}".encode())):
                    entry = tarfile.TarInfo(f"{number:02d}.{ending}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return place / "set"


@pytest.mark.parametrize("form", ["parquet file", "parquet folder", "saved", "imagefolder", "webdataset"])
def test_every_form(hf, form, tmp_path):
    source, target = save_as(hf, form, tmp_path), tmp_path / "out"
    assert convert(source, target) == 0
    table = metadata(target)
    endings = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
    assert list(table) == [f"{number:08d}.{endings[FORMATS[number % 3]]}" for number in range(6)]
    for number, (key, entry) in enumerate(table.items()):
        assert (target / "images" / key).read_bytes() == picture(number)  # the very bytes
        assert entry == {"caption": f"caption {number}", "image_size": [24, 16]}
    assert {path.name for path in target.iterdir()} == {"images", "metadata.json", "dataset.toml", "import.jsonl"}


def test_the_toml_is_one_to_train_with(hf, tmp_path):
    source, target = save_as(hf, "parquet file", tmp_path), tmp_path / 'a "quoted" \u00e9\\folder'
    assert convert(source, target, "--tags_column=tags", "--resolution=640") == 0
    (config,) = load_dataset_configs(target / "dataset.toml", {})
    findings = Findings()
    ((scan,),) = scan_datasets([config], findings)
    assert findings == Findings()
    assert config.resolution == (640, 640)
    assert [image.caption for image in scan.images] == [f"caption {n},red, t{n}" for n in range(6)]


def test_columns(hf, tmp_path):
    source = tmp_path / "a.parquet"
    keys = [f"set {n}/p.{n}" for n in range(6)]
    data_set(hf, key=keys, other=[{"bytes": picture(n + 9), "path": None} for n in range(6)]).to_parquet(source)
    options = ["--image_column=other", "--caption_column=kind", "--tags_column=tags", "--name_column=key"]
    assert convert(source, tmp_path / "out", *options) == 0
    table = metadata(tmp_path / "out")
    assert table["set 1/p.1.jpg"] == {"caption": "dog", "tags": "red, t1", "image_size": [24, 16]}
    assert (tmp_path / "out" / "images" / "set 1" / "p.1.jpg").read_bytes() == picture(10)
    assert convert(source, tmp_path / "bare", "--image_column=image", "--no_captions", "--name_column=image") == 0
    assert set(metadata(tmp_path / "bare")["p1.x.jpg"]) == {"image_size"}


def test_a_parquet_file_that_another_library_wrote(hf, tmp_path):
    """It does not say which column holds images; the struct of bytes and path does."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"picture": [{"bytes": picture(n), "path": None} for n in range(3)], "text": ["a", "b", "c"]})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    assert convert(tmp_path / "a.parquet", tmp_path / "out") == 0
    assert (tmp_path / "out" / "images" / "00000002.webp").read_bytes() == picture(2)


def test_several_captions_of_an_image_become_lines(hf, tmp_path):
    source = tmp_path / "a.parquet"
    data_set(hf).to_parquet(source)
    assert convert(source, tmp_path / "out", "--caption_column=tags") == 0
    assert metadata(tmp_path / "out")["00000001.jpg"]["caption"] == "red\nt1"
    assert load_dataset_configs(tmp_path / "out" / "dataset.toml", {})[0].subsets[0].enable_wildcard


def test_a_field_of_a_column(hf, tmp_path):
    features = hf.Features({"image": hf.Image(), "json": {"deep": {"caption": hf.Value("string")}}})
    rows = [{"image": {"bytes": picture(0), "path": None}, "json": {"deep": {"caption": "inside"}}}]
    hf.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    assert convert(tmp_path / "a.parquet", tmp_path / "out", "--caption_column=json.deep.caption") == 0
    assert metadata(tmp_path / "out")["00000000.png"]["caption"] == "inside"


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_re_encoding(hf, tmp_path, kind):
    source = tmp_path / "a.parquet"
    data_set(hf).to_parquet(source)
    assert convert(source, tmp_path / "out", f"--image_format={kind}") == 0
    for number, key in enumerate(metadata(tmp_path / "out")):
        assert key == f"{number:08d}.{kind}"
        pixels = np.array(Image.open(tmp_path / "out" / "images" / key), int)
        expected = np.array(Image.open(io.BytesIO(picture(number))).convert("RGB"), int)
        assert abs(pixels - expected).max() <= (0 if kind == "png" else 3)  # rounding of flat colours


HOSTILE = (
    "../up",
    "/etc/passwd",
    "a/../../b",
    "a//b",
    "",
    ".",
    "a/.hidden",
    "..",
    "c:\\x",
    "a\\..\\b",
    "a\nb",
    "nul\0",
    "a" * 201,
    " a",
    "a:b",
    "a*",
)


@pytest.mark.parametrize("name", [*HOSTILE, "\u202egnp", "\udcff"])
def test_names_that_are_refused(name):
    with pytest.raises(ValueError, match="is refused"):
        safe_relative_name(name)


@pytest.mark.parametrize("name", ["a", "a b/c.d", "\u732b", "x..y", "a" * 200, "a" * 200 + "/" + "b" * 200, "~a", "-r"])
def test_names_that_are_used(name):
    assert safe_relative_name(name) == name


def test_hostile_rows_are_left_out_by_name(hf, tmp_path, capsys):
    """Names that lead out, files of this machine in place of images, images that are none, the same name twice."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(0))
    names = [*HOSTILE, "good", "good", "text", "path", "none", "gif"]
    images: list[Any] = [{"bytes": picture(1), "path": None} for _ in names]
    images[-4]["bytes"] = b"#!/bin/sh"
    images[-3] = {"bytes": None, "path": str(secret)}
    images[-2] = None
    images[-1] = {"bytes": picture(1, "GIF"), "path": None}
    source, target = tmp_path / "a.parquet", tmp_path / "deep" / "er" / "out"
    count = len(names)
    data_set(hf, count, image=images, key=names).to_parquet(source)
    assert convert(source, target, "--name_column=key") == 1
    assert list(metadata(target)) == ["good.jpg"]
    error = capsys.readouterr().err
    assert f"({count - 1} left out" in error and "row 1: the name '/etc/passwd' is refused" in error
    problems = {row["row"]: row["problem"] for row in map(json.loads, (target / "import.jsonl").open()) if "row" in row}
    good = len(HOSTILE)
    assert "is that of row 16, too" in problems[good + 1]
    assert "no image in one of the formats" in problems[good + 2] and "no image in one" in problems[good + 5]
    assert f"names the file {str(secret)!r}" in problems[good + 3]
    assert "has no image" in problems[good + 4]
    outside = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert outside == {"secret.png", "a.parquet", "deep"}
    assert [path.name for path in (target / "images").rglob("*")] == ["good.jpg"]


def test_files_outside_the_folder_are_left_out(hf, tmp_path, capsys):
    """The library itself follows them."""
    source = save_as(hf, "imagefolder", tmp_path)
    (tmp_path / "secret.png").write_bytes(picture(0))
    lines = ["file_name,text", "0.png,own", "../secret.png,not", f"{tmp_path / 'secret.png'},not", "./1.jpeg,own"]
    (source / "metadata.csv").write_text("\n".join(lines) + "\n")
    assert convert(source, tmp_path / "out") == 1
    assert [entry["caption"] for entry in metadata(tmp_path / "out").values()] == ["own", "own"]
    assert capsys.readouterr().err.count("not one of the data set's own") == 2


def test_a_folder_by_other_names(hf, tmp_path, monkeypatch):
    source = save_as(hf, "imagefolder", tmp_path)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for number, name in enumerate(("../set", "../link", "../work/../set", str(tmp_path / "link"))):
        assert convert(name, tmp_path / f"out{number}") == 0
        assert len(metadata(tmp_path / f"out{number}")) == 6


def test_a_cut_archive_is_refused(hf, tmp_path, capsys):
    """The library takes what is left for the whole."""
    source = save_as(hf, "webdataset", tmp_path)
    whole = (source / "a.tar").read_bytes()
    for size in (1024, 3000, len(whole) // 2 // 512 * 512, 0):
        (source / "a.tar").write_bytes(whole[:size])
        for place in (source, source / "a.tar"):
            assert convert(place, tmp_path / "out") == 1
            assert "a.tar: the archive is cut short" in capsys.readouterr().err


def test_truncated_images_are_left_out(hf, tmp_path, capsys):
    images = [{"bytes": picture(n)[: 60 if n % 2 else None], "path": None} for n in range(6)]
    data_set(hf, image=images).to_parquet(tmp_path / "a.parquet")
    for kind in ("keep", "png"):
        assert convert(tmp_path / "a.parquet", tmp_path / kind, f"--image_format={kind}") == 1
        assert len(metadata(tmp_path / kind)) == 3
        error = capsys.readouterr().err
        assert "row 1: " in error and "row 5: " in error and ".incoming" not in error


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--caption_column=txet"], ["no column 'txet'", "Did you mean text?", "image (Image", "kind (ClassLabel"]),
        (
            ["--image_column=picture", "--name_column=no"],
            ["no column 'picture'", "no column 'no'", "columns are: image"],
        ),
        (["--split=val"], ["no split 'val'", "--split can be train"]),
        (["--no_captions", "--tags_column=tags"], ["contradicts"]),
        (["--resolution=1"], ["--resolution is 1"]),
        (["--revision=main"], ["--revision is for hub names"]),
    ],
)
def test_wrong_options(hf, tmp_path, capsys, options, messages):
    source = save_as(hf, "parquet file", tmp_path)
    assert convert(source, tmp_path / "out", *options) == 1
    error = capsys.readouterr().err
    assert [message for message in messages if message not in error] == []
    assert not (tmp_path / "out").exists()


def test_no_caption_column(hf, tmp_path, capsys):
    data_set(hf).remove_columns("text").to_parquet(tmp_path / "a.parquet")
    assert convert(tmp_path / "a.parquet", tmp_path / "out") == 1
    assert "no column is called text or caption" in capsys.readouterr().err
    assert convert(tmp_path / "a.parquet", tmp_path / "out", "--tags_column=tags") == 0


@pytest.mark.parametrize("name", ["none.parquet", "none", "a.zip", "empty", "bad.parquet", "bad.tar"])
def test_sources_that_are_none(hf, tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    for bad in ("a.zip", "bad.parquet", "bad.tar"):
        (tmp_path / bad).write_bytes(b"nothing of the kind" * 100)
    assert convert(tmp_path / name, tmp_path / "out") == 1
    assert name in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def run_apart(target: Path, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, since the library reads the hub's address when it is imported."""
    command = [sys.executable, "tools/convert_hf_dataset.py", name, "--output_dir", str(target)]
    environment |= {"HF_HOME": str(target.parent / "home")}
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120)


def test_a_hub_name(hf, tmp_path):
    source = save_as(hf, "parquet folder", tmp_path) / "data" / "train-00000-of-00001.parquet"
    with hub_with({"data/train-00000-of-00001.parquet": source.read_bytes(), "README.md": b"A set."}) as endpoint:
        done = run_apart(tmp_path / "out", NAME, HF_ENDPOINT=endpoint)
        assert (done.returncode, metadata(tmp_path / "out")["00000004.jpg"]["caption"]) == (0, "caption 4"), done.stderr
        settings = json.loads((tmp_path / "out" / "import.jsonl").read_text().partition("\n")[0])
        assert (settings["source"], settings["fingerprint"]) == (NAME, COMMIT)
        done = run_apart(tmp_path / "none", "owner/other", HF_ENDPOINT=endpoint)
    assert done.returncode == 1 and "error: owner/other: cannot be read" in done.stderr


def test_a_hub_name_offline(tmp_path):
    pytest.importorskip("datasets")
    done = run_apart(tmp_path / "out", NAME, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert f"error: {NAME}: cannot be read" in done.stderr and "Traceback" not in done.stderr


def test_other_folders_are_left_alone(hf, tmp_path, capsys):
    source = save_as(hf, "parquet folder", tmp_path)
    assert convert(source, source / "out") == 1
    assert "inside the data set" in capsys.readouterr().err
    (tmp_path / "mine" / "images").mkdir(parents=True)
    assert convert(source, tmp_path / "mine") == 1
    assert "images are there already" in capsys.readouterr().err
    assert convert(source, tmp_path / "out") == 0
    before = bytes_below(tmp_path / "out")
    assert convert(source, tmp_path / "out", "--image_format=png") == 1
    assert "image_format 'keep', now 'png'" in capsys.readouterr().err
    os.utime(source / "data" / "train-00000-of-00001.parquet", (1, 1))
    assert convert(source, tmp_path / "out") == 1
    assert "fingerprint" in capsys.readouterr().err
    assert bytes_below(tmp_path / "out") == before


@pytest.mark.parametrize("torn", [b"", b'{"row": 4, "ke'])
def test_going_on_gives_the_same_files(hf, tmp_path, monkeypatch, capsys, torn):
    source = save_as(hf, "parquet file", tmp_path)
    assert convert(source, tmp_path / "whole") == 0
    expected = bytes_below(tmp_path / "whole")
    write, count = dataset_import.write_whole_path, 0

    def full_disk(path: Path, *rest: Any) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise ValueError(f"{path}: could not be written: no space")
        write(path, *rest)

    monkeypatch.setattr(dataset_import, "write_whole_path", full_disk)
    assert convert(source, tmp_path / "out") == 1
    assert "no space" in capsys.readouterr().err
    monkeypatch.setattr(dataset_import, "write_whole_path", write)
    with open(tmp_path / "out" / "import.jsonl", "ab") as stream:
        stream.write(torn)
    done = tmp_path / "out" / "images" / "00000001.jpg"
    written = done.stat().st_mtime_ns
    assert convert(source, tmp_path / "out") == 0
    assert "going on behind row 3" in capsys.readouterr().out
    assert done.stat().st_mtime_ns == written
    found = bytes_below(tmp_path / "out")
    toml = found.pop("dataset.toml").replace(b"/out/", b"/whole/")
    assert found | {"dataset.toml": toml} == expected
    assert convert(source, tmp_path / "out") == 0  # nothing is left to do
    assert bytes_below(tmp_path / "out") == found | {"dataset.toml": toml.replace(b"/whole/", b"/out/")}


@pytest.mark.parametrize("form", ["parquet file", "saved"])
def test_rows_from_anywhere_on(hf, tmp_path, form):
    """In a parquet file beginnings and ends of row groups are nothing special."""
    source = tmp_path / "rows.parquet"
    numbers = hf.Dataset.from_dict({"number": list(range(8))})
    if form == "saved":
        numbers.save_to_disk(source)
    else:
        numbers.to_parquet(source, batch_size=3)
    opened = open_source(str(source), None, None, None)
    for start in range(10):
        assert [row["number"] for row in opened.rows(start, ["number"])] == list(range(start, 8))


def test_two_imports_into_one_folder(tmp_path):
    first = ImportFolder(tmp_path, {}, "png")
    with pytest.raises(ValueError, match="another import is writing there"):
        ImportFolder(tmp_path, {}, "png")
    del first
    ImportFolder(tmp_path, {}, "png")


def test_killed_and_started_again(hf, tmp_path):
    """kill -9 at some moment; afterwards the same bytes, and no file but the import's own."""
    source = tmp_path / "a.parquet"
    data_set(hf, 60, image=[{"bytes": picture(n, "PNG", (400, 300)), "path": None} for n in range(60)]).to_parquet(
        source
    )
    assert convert(source, tmp_path / "whole", "--image_format=png") == 0
    target = tmp_path / "out"
    command = [sys.executable, "tools/convert_hf_dataset.py", str(source), "--output_dir", str(target)]
    process = subprocess.Popen([*command, "--image_format=png"], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(list(target.glob("images/0*.png"))) < 10 and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 10 <= len(list(target.glob("images/0*.png"))) < 60
    for folder in (target, target / "images"):
        (folder / ".part-0123456789abcdef.png").write_bytes(b"half")
    assert convert(source, target, "--image_format=png") == 0
    found, expected = bytes_below(target), bytes_below(tmp_path / "whole")
    assert set(found) == set(expected)
    assert all(found[name] == data for name, data in expected.items() if name != "dataset.toml")


def test_a_folder_without_any_image(tmp_path):
    target = ImportFolder(tmp_path / "out", {})
    target.leave_out("no image")
    with pytest.raises(ValueError, match="no row has a picture"):
        target.finish(1024)
