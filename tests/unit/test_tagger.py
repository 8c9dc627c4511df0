"""The tagger: its tags and their choice, and the program with small models made here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.curation.tagger_tags import (
    CATEGORIES,
    TagChoice,
    TaggerTag,
    TagSpelling,
    choose_tags,
    parse_replacements,
    read_tag_file,
    spell_tags,
)
from tests.unit.hub_server import NAME, hub_with
from tools import tag_images_by_wd14_tagger, wd14_model

ROOT = Path(__file__).resolve().parents[2]
ROWS = (
    ("general", "9"),
    ("explicit", "9"),
    ("red_hue", "0"),
    ("blue_hue", "0"),
    ("o_o", "0"),
    ("mira_(red_coat)_(sea_tales)", "4"),
    ("bo_(sea_tales)", "4"),
)
# one row for each tag: factors of the mean blue, green and red (0 to 1), and what is added
FACTORS = np.array(
    [[0, 0, -1, 1], [0, 0, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.5, 0], [1, 0, 0, -0.2]], np.float32
)


def save_model(path: Path, *, first: str = "", batch: int | str = "n", channels_first: bool = False, side: int = 8):
    """A model whose outputs are linear in the mean colour of the picture.

    `first`: logits as models with a tag_mapping.json give them, for values in [-1, 1]; else probabilities of 0 to 255.
    """
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shape = [batch, 3, side, side] if channels_first else [batch, side, side, 3]
    scale, shift = (0.5, 0.5) if first == "logits" else (1 / 255, 0.0)
    constants = {
        "axes": np.array([2, 3] if channels_first else [1, 2], np.int64),
        "scale": np.array(scale, np.float32),
        "shift": np.array(shift, np.float32),
        "factors": np.ascontiguousarray(FACTORS[:, :3].T),
        "added": FACTORS[:, 3],
    }
    nodes = [
        helper.make_node("ReduceMean", ["pictures", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["colour"]),
        helper.make_node("MatMul", ["colour", "factors"], ["product"]),
        helper.make_node("Add", ["product", "added"], ["tags"]),
    ]
    outputs = "tags"
    if first == "logits":  # the inverse of the sigmoid, so that both kinds have the same probabilities
        constants |= {"low": np.array(1e-6, np.float32), "high": np.array(1 - 1e-6, np.float32)}
        constants["one"] = np.array(1, np.float32)
        nodes += [
            helper.make_node("Clip", ["tags", "low", "high"], ["p"]),
            helper.make_node("Sub", ["one", "p"], ["q"]),
            helper.make_node("Div", ["p", "q"], ["odds"]),
            helper.make_node("Log", ["odds"], ["logits"]),
        ]
        outputs = "logits"
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("pictures", kind, shape)],
        [helper.make_tensor_value_info(outputs, kind, [batch, len(FACTORS)])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def save_csv(folder: Path, rows=ROWS) -> None:
    lines = ["tag_id,name,category,count", *(f"{n},{name},{category},1" for n, (name, category) in enumerate(rows))]
    (folder / "selected_tags.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    save_model(tmp_path / "model" / "model.onnx")
    save_csv(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (30, 30), (255, 0, 0)).save(folder / "red.png")
    Image.new("RGB", (30, 30), (0, 0, 255)).save(folder / "blue.bmp")
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(folder / "sub" / "clear.png")
    return folder


def run(pictures: Path, model: Path, *options: str) -> int:
    return tag_images_by_wd14_tagger.main([str(pictures), "--repo_id", str(model), *options])


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_tags_follow_the_colours(pictures, model):
    """Channels are blue, green, red; transparency is white; 0 to 255."""
    assert run(pictures, model, "--recursive") == 0
    assert text_of(pictures / "red.txt") == "red_hue, mira_(red_coat)_(sea_tales)\n"
    assert text_of(pictures / "blue.txt") == "blue_hue, bo_(sea_tales)\n"
    white = "red_hue, blue_hue, o_o, mira_(red_coat)_(sea_tales), bo_(sea_tales)\n"
    assert text_of(pictures / "sub" / "clear.txt") == white


def test_a_narrow_picture_is_padded_with_white(tmp_path, model):
    folder = tmp_path / "narrow"
    folder.mkdir()
    Image.new("RGB", (10, 40), (255, 0, 0)).save(folder / "a.png")  # a quarter red, the rest white
    assert run(folder, model, "--thresh=0.74") == 0
    assert text_of(folder / "a.txt") == "red_hue, blue_hue, o_o\n"  # means of blue and green are 0.75
    assert run(folder, model, "--thresh=0.76") == 0
    assert text_of(folder / "a.txt") == "red_hue\n"


def test_spelling_and_order(pictures, model):
    options = ["--remove_underscore", "--character_tag_expand", "--character_tags_first", "--use_rating_tags"]
    assert run(pictures, model, *options, "--caption_separator=; ") == 0
    assert text_of(pictures / "red.txt") == "explicit; mira (red coat); sea tales; red hue\n"
    options = ["--use_rating_tags_as_last_tag", "--tag_replacement=red_hue,red;blue_hue,very\\, blue"]
    assert run(pictures, model, *options, "--character_threshold=1.1") == 0
    assert [text_of(pictures / name) for name in ("red.txt", "blue.txt")] == [
        "red, explicit\n",
        "very, blue, general\n",
    ]


def test_first_and_undesired_tags(pictures, model, capsys):
    options = ["--recursive", "--always_first_tags=o_o,blue_hue", "--undesired_tags=red_hue, bo_(sea_tales), rad_hue"]
    assert run(pictures, model, *options, "--frequency_tags") == 0
    assert text_of(pictures / "sub" / "clear.txt") == "o_o, blue_hue, mira_(red_coat)_(sea_tales)\n"
    assert text_of(pictures / "red.txt") == "mira_(red_coat)_(sea_tales)\n"
    out = capsys.readouterr().out
    assert "'rad_hue' is not a tag" in out and "Did you mean red_hue?" in out
    assert "blue_hue: 2\n" in out and "red_hue:" not in out


def test_appending_and_overwriting(pictures, model, capsys):
    (pictures / "red.txt").write_text("mine, red_hue\nanother\n")
    assert run(pictures, model, "--append_tags") == 0
    assert text_of(pictures / "red.txt") == "mine, red_hue, another, mira_(red_coat)_(sea_tales)\n"
    assert run(pictures, model) == 0
    assert text_of(pictures / "red.txt") == "red_hue, mira_(red_coat)_(sea_tales)\n"
    assert "1 had other text" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "field"), [("o.json", "tags"), ("o.jsonl", "caption")])
def test_one_metadata_file(pictures, model, tmp_path, name, field):
    assert run(pictures, model, "--recursive", "--output_path", str(tmp_path / name)) == 0
    text = text_of(tmp_path / name)
    if name.endswith("l"):
        table = {entry.pop("image_path"): entry for entry in map(json.loads, text.splitlines())}
    else:
        table = json.loads(text)
    assert table[str(pictures / "blue.bmp")] == {field: "blue_hue, bo_(sea_tales)", "image_size": [30, 30]}
    assert len(table) == 3 and not list(pictures.glob("**/*.txt"))


@pytest.mark.parametrize("batch", [1, 2, "n"])
def test_batches_do_not_change_results(pictures, tmp_path, batch):
    pytest.importorskip("onnxruntime")
    save_model(tmp_path / "other" / "model.onnx", batch=batch, channels_first=True, side=12)
    save_csv(tmp_path / "other")
    assert run(pictures, tmp_path / "other", "--recursive", "--batch_size=2", "--max_data_loader_n_workers=3") == 0
    assert text_of(pictures / "red.txt") == "red_hue, mira_(red_coat)_(sea_tales)\n"
    assert text_of(pictures / "blue.txt") == "blue_hue, bo_(sea_tales)\n"
    assert "o_o" in text_of(pictures / "sub" / "clear.txt")


def test_a_model_with_a_tag_mapping(pictures, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "mapped"
    save_model(folder / "model_optimized.onnx", first="logits", channels_first=True)
    names = {"9": "Rating", "0": "General", "4": "Character"}
    mapping = {str(n): {"tag": name, "category": names[number]} for n, (name, number) in enumerate(ROWS)}
    mapping["3"]["category"] = "Quality"
    (folder / "tag_mapping.json").write_text(json.dumps(mapping))
    assert run(pictures, folder, "--use_quality_tags", "--use_rating_tags", "--artist_threshold=0.2") == 0
    assert text_of(pictures / "red.txt") == "explicit, blue_hue, red_hue, mira_(red_coat)_(sea_tales)\n"
    assert text_of(pictures / "blue.txt") == "general, blue_hue, bo_(sea_tales)\n"
    assert "this model has no artist tags" in capsys.readouterr().out


def test_most_probable_first():
    tags = [TaggerTag(n, "general", (name,)) for n, name in enumerate("abc")]
    choice = TagChoice(dict.fromkeys(CATEGORIES, 0.3), by_probability=True)
    assert choose_tags(np.array([0.4, 0.2, 0.9]), tags, choice) == ["c", "a"]


def test_replacing_one_tag_leaves_the_others():
    """The original replaces all or none."""
    tags = [TaggerTag(n, "general", (name,)) for n, name in enumerate(("a", "b;c", "d,e"))]
    spelled = spell_tags(tags, TagSpelling(replacements=parse_replacements(r"b\;c,x\,y;d\,e,z")))
    assert [tag.names for tag in spelled] == [("a",), ("x,y",), ("z",)]
    with pytest.raises(ValueError, match="'aa' is not a tag"):
        spell_tags(tags, TagSpelling(replacements={"aa": "b"}))
    with pytest.raises(ValueError, match="(?s)2 problems.*'a'.*'b,c,d'"):
        parse_replacements("a;x,y;b,c,d")


def test_broken_pictures_are_named_and_the_others_tagged(pictures, model, capsys):
    (pictures / "bad1.png").write_bytes(b"x")
    (pictures / "bad2.jpg").write_bytes(b"")
    assert run(pictures, model) == 1
    captured = capsys.readouterr()
    assert "bad1.png" in captured.err and "bad2.jpg" in captured.err and "tags of 2 images" in captured.out
    assert (pictures / "red.txt").exists() and not (pictures / "bad1.txt").exists()


def test_files_that_do_not_belong_together(pictures, model, capsys):
    save_csv(model, ROWS[:-1])
    assert run(pictures, model) == 1
    assert "gives [7] numbers for a picture, but selected_tags.csv names 6 tags" in capsys.readouterr().err
    (model / "model.onnx").write_bytes(b"no model")
    assert run(pictures, model) == 1
    assert "onnxruntime cannot load the model" in capsys.readouterr().err
    (model / "model.onnx").unlink()
    assert run(pictures, model) == 1
    assert "the folder has selected_tags.csv" in capsys.readouterr().err
    assert not list(pictures.glob("*.txt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch_size=0", "--max_data_loader_n_workers=-1", "--caption_separator= "], "3 problems"),
        (["--output_path=tags.txt"], "has to end in .json or .jsonl"),
        (["--tag_replacement=a"], "is not OLD,NEW"),
        (["--repo_id=nonsense"], "no such folder, and it is no hub name"),
        (["--repo_id=a/../b"], "no such folder, and it is no hub name"),
    ],
)
def test_wrong_options(pictures, tmp_path, capsys, options, message):
    assert run(pictures, tmp_path / "none", *options) == 1
    assert message in capsys.readouterr().err


def test_two_pictures_with_one_text_file(pictures, model, tmp_path, capsys):
    Image.new("RGB", (5, 5)).save(pictures / "red.webp")
    assert run(pictures, model) == 1
    assert "one text file for both" in capsys.readouterr().err
    assert run(pictures, model, "--output_path", str(tmp_path / "o.json")) == 0


def test_lists_of_tags_that_are_refused(tmp_path):
    path = tmp_path / "selected_tags.csv"
    for text, message in (("", "begin with"), ("a,b,c\n", "they are a, b, c"), ("tag_id,name,category\n1,x,7\n", "7")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_tag_file(path)
    path = tmp_path / "tag_mapping.json"
    for text in ("[]", "{", '{"x": {"tag": "a", "category": "General"}}', '{"0": {"tag": "a", "category": "B"}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="tag_mapping.json"):
            read_tag_file(path)


def test_a_fetched_model_is_not_fetched_again(tmp_path, monkeypatch):
    """Where the files are is the original's: MODEL_DIR/owner_name[/folder]."""
    fetched = []

    def fetch(name, files, place, force):
        fetched.append((name, files))
        for file in files:
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_bytes(b"")

    monkeypatch.setattr(wd14_model, "_fetch", fetch)
    for repo_id, files in (("o/n", ["model.onnx", "selected_tags.csv"]), ("o/n/a/b", ["a/b/model_optimized.onnx"])):
        for force in (False, False, True):
            found = wd14_model.find_model(repo_id, tmp_path, force_download=force)
        assert found.onnx == tmp_path / "o_n" / files[0]
    assert [name for name, _ in fetched] == ["o/n"] * 4
    assert fetched[2][1] == ["a/b/model_optimized.onnx", "a/b/tag_mapping.json"]


def test_a_hub_name(pictures, model, tmp_path):
    """In a process of its own, since the client reads the hub's address when it is imported."""
    files = {f"{folder}{path.name}": path.read_bytes() for folder in ("", "v/1/") for path in model.iterdir()}
    command = [sys.executable, "tools/tag_images_by_wd14_tagger.py", str(pictures)]
    command += ["--model_dir", str(tmp_path / "models"), "--repo_id"]

    def run_with(name: str, endpoint: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        return subprocess.run([*command, name], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    with hub_with(files) as endpoint:
        done = run_with(NAME, endpoint)
        assert done.returncode == 0, done.stderr
        assert "blue_hue" in text_of(pictures / "blue.txt")
        done = run_with(NAME + "/v/1", endpoint)
        assert done.returncode == 1 and "did not give its v/1/model_optimized.onnx" in done.stderr
    done = run_with(NAME, "http://127.0.0.1:1")  # it is there now
    assert done.returncode == 0 and "fetching" not in done.stdout
