"""The tiny SDXL: shapes from a config, weights by rule, a file by the tool."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest

from library.families.sdxl.shapes import FULL_SDXL, TINY_SDXL, checkpoint_shapes, unet_shapes
from library.files.safetensors_utils import SafetensorsFile
from library.models.random_weights import lora_weights, random_weight, tiny_weights
from tools.make_tiny_sdxl import main


def rule(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The rule as it is written down beside the recordings, in one go."""
    if name.endswith("logit_scale"):
        return np.array(4.6052, np.float32)
    v = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if len(shape) >= 2:
        v *= 0.05 if "embedding" in name else 1 / np.sqrt(np.prod(shape[1:]))
    elif len(shape) == 1:
        v = 0.02 * v if name.endswith("bias") else 1 + 0.1 * v
    return v.astype(np.float32)


def test_shapes_equal_the_manifest(golden: Path) -> None:
    manifest = json.loads((golden / "tiny_sdxl_manifest.json").read_text())
    shapes = checkpoint_shapes(TINY_SDXL)
    assert {name: list(shape) for name, shape in shapes.items()} == manifest
    assert list(shapes) == list(manifest)


def test_sizes() -> None:
    """2514 keys each; the UNet of SDXL base 1.0 has 2,567,463,684 parameters in 1680 tensors."""
    tiny, full = checkpoint_shapes(TINY_SDXL), checkpoint_shapes(FULL_SDXL)
    assert tiny.keys() == full.keys()
    assert len(full) == 2514
    assert sum(math.prod(shape) for shape in tiny.values()) == 38_500_236
    unet = dict(unet_shapes(FULL_SDXL))
    assert len(unet) == 1680
    assert sum(math.prod(shape) for shape in unet.values()) == 2_567_463_684
    assert full["model.diffusion_model.label_emb.0.0.weight"] == (1280, 2816)
    assert full["first_stage_model.decoder.up.0.block.0.nin_shortcut.weight"] == (128, 256, 1, 1)


@pytest.mark.parametrize("seed", [0, 7])
def test_weights_follow_the_rule_bit_for_bit(seed: int) -> None:
    """One name of each kind, and one with more numbers than are drawn at once."""
    shapes = checkpoint_shapes(TINY_SDXL)
    names = [
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "conditioner.embedders.1.model.positional_embedding",
        "conditioner.embedders.1.model.logit_scale",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_bias",
        "model.diffusion_model.out.0.bias",
        "model.diffusion_model.out.0.weight",
        "model.diffusion_model.out.2.weight",
    ]
    for name, weight in tiny_weights(seed, {name: shapes[name] for name in names}):
        expected = rule(seed, name, shapes[name])
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, expected)


def test_lora_weights() -> None:
    shapes = {"m.alpha": (), "m.lora_down.weight": (4, 8), "m.lora_up.weight": (6, 4)}
    weights = dict(lora_weights(11, shapes, 2.0))
    assert weights["m.alpha"] == 2
    np.testing.assert_array_equal(weights["m.lora_down.weight"], rule(11, "m.lora_down.weight", (4, 8)))
    up = rule(11, "m.lora_up.weight", (6, 4))
    np.testing.assert_allclose(weights["m.lora_up.weight"], 0.05 * up, rtol=1e-6)
    assert {weight.dtype for weight in weights.values()} == {np.dtype(np.float32)}


def test_tool_writes_the_checkpoint(tmp_path: Path) -> None:
    output = tmp_path / "new" / "tiny.safetensors"
    assert main(["--seed", "1", "--output", str(output)]) == 0
    shapes = checkpoint_shapes(TINY_SDXL)
    with SafetensorsFile(output) as file:
        assert {name: file.shape(name) for name in file} == shapes
        assert {file.dtype(name) for name in file} == {"F32"}
        for name in list(shapes)[::200]:
            np.testing.assert_array_equal(file.read(name), rule(1, name, shapes[name]))


def test_tool_takes_a_manifest_and_half_precision(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"x.weight": [3, 4], "logit_scale": []}')
    for number in ("1", "2"):
        arguments = ["--output", str(tmp_path / number), "--dtype", "float16", "--manifest", str(tmp_path / "m.json")]
        assert main(["--seed", "5", *arguments]) == 0
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    with SafetensorsFile(tmp_path / "1") as file:
        expected = random_weight(5, "x.weight", (3, 4)).astype(np.float16)
        np.testing.assert_array_equal(file.read("x.weight"), expected)
        assert file.read("logit_scale") == np.float16(4.6052)


@pytest.mark.parametrize(
    ("content", "message"), [("no json", "cannot be read as JSON"), ('{"a": 1}', "it must map keys to shapes")]
)
def test_tool_refuses_other_manifests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, message: str
) -> None:
    (tmp_path / "m.json").write_text(content)
    assert main(["--seed", "1", "--output", str(tmp_path / "f"), "--manifest", str(tmp_path / "m.json")]) == 1
    assert message in caplog.text
    assert not (tmp_path / "f").exists()


def test_tool_refuses_a_negative_seed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--seed", "-1", "--output", str(tmp_path / "f")]) == 1
    assert "--seed -1: it must be 0 or more" in caplog.text
