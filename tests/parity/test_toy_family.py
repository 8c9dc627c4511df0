"""A run of a family that the library knows nothing of, from flags to files: nothing outside a family needs to know it.

The first loss and the first update are compared with NumPy, which shows that data, draws, text and step meet rightly.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.data.batch import Batch
from library.data.run_rng import RunRng
from library.data.text.tokenizer import ClipTokenizer
from library.files.safetensors_utils import SafetensorsFile, save_file
from library.runs.loop import Follower, Position
from library.runs.train_network import train_network
from library.settings.arguments import read_train_args
from library.training.optimizers.optimizer import Optimizer
from library.training.step import StepResult
from tests.parity.toy_family import (
    LATENT_SCALE,
    ToyFamily,
    numpy_prediction,
    numpy_words,
    save_toy,
    toy_weights,
)

SEED, SIDE, RANK, LR = 11, 32, 2, 0.01
CAPTIONS = ("a red square, flat", "blue", "green circle, grey ground, simple", "a dot")
LAYERS = {
    "lora_te_word_proj",
    "lora_te_spare_proj",
    "lora_denoiser_enter_time",
    *(f"lora_denoiser_mix_{i}_{name}" for i in (0, 1) for name in ("mlp_fc1", "gate")),
}
TEXT = {"lora_te_word_proj", "lora_te_spare_proj"}
IDLE = "lora_te_spare_proj"
"""No block reads its layer."""
CONVS = {"lora_denoiser_enter_conv", "lora_denoiser_leave_conv"}
UNET_ONLY = ("--network_train_unet_only",)
CACHES = (*UNET_ONLY, "--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk")

pytestmark = pytest.mark.usefixtures("device")


class _Watch(Follower):
    """Keeps batches and what came of them."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.results: list[StepResult] = []
        self.positions: list[Position] = []

    def after_batch(self, position: Position, batch: Batch, result: StepResult) -> None:
        self.batches.append(batch)
        self.results.append(result)
        self.positions.append(position)

    @property
    def losses(self) -> list[float]:
        return [result.loss for result in self.results]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A base model and four pictures of noise with captions."""
    save_toy(tmp_path / "toy.safetensors")
    rng = np.random.default_rng(3)
    images = tmp_path / "images"
    images.mkdir()
    for i, caption in enumerate(CAPTIONS):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text(caption)
    (tmp_path / "data.toml").write_text(
        f'[[datasets]]\nresolution = {SIDE}\nbatch_size = 2\ncaption_extension = ".txt"\n'
        f'[[datasets.subsets]]\nimage_dir = "{images.as_posix()}"\n'
    )
    return tmp_path


def go(place: Path, name: str, options: Sequence[str], steps: int = 3) -> _Watch:
    """Train into ``name.safetensors``."""
    watch = _Watch()
    argv = [
        f"--pretrained_model_name_or_path={place / 'toy.safetensors'}",
        f"--dataset_config={place / 'data.toml'}",
        f"--output_dir={place}",
        f"--output_name={name}",
        "--network_module=networks.lora",
        f"--network_dim={RANK}",
        f"--network_alpha={RANK}",
        f"--learning_rate={LR}",
        f"--seed={SEED}",
        f"--max_train_steps={steps}",
        *options,
    ]
    train_network(read_train_args(argv), ToyFamily(), [watch])
    return watch


def read(place: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with SafetensorsFile(place / f"{name}.safetensors") as file:
        return {key: file.read(key) for key in file}, dict(file.metadata)


def expected_loss(batch: Batch, place: Path) -> float:
    """From the pictures, the captions and the run's random streams, in NumPy and float64."""
    weights = toy_weights(1)
    rng, count = RunRng(SEED), len(batch.keys)
    images = np.stack([np.asarray(Image.open(key), np.float64) for key in batch.keys]).transpose(0, 3, 1, 2)
    colours = (images / 127.5 - 1).reshape(count, 3, SIDE // 8, 8, SIDE // 8, 8).mean((3, 5))
    mean = np.concatenate((colours, colours.mean(1, keepdims=True)), 1) * weights.vae["gain"].reshape(1, 4, 1, 1)
    eps = rng.numpy("latents", batch.index).standard_normal(mean.shape, dtype=np.float32)
    latents = (mean + 0.25 * eps) * LATENT_SCALE
    noise = rng.numpy("noise", batch.index).standard_normal(mean.shape, dtype=np.float32)
    times = rng.numpy("timesteps", batch.index).integers(0, 1000, count)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # Stable Diffusion's scaled_linear
    alphas = np.cumprod(1 - betas)[times].reshape(-1, 1, 1, 1)
    noisy = np.sqrt(alphas) * latents + np.sqrt(1 - alphas) * noise
    captions = [Path(key).with_suffix(".txt").read_text() for key in batch.keys]
    ids = np.concatenate([ClipTokenizer(0).ids(caption) for caption in captions])
    prediction = numpy_prediction(weights, noisy, times, numpy_words(weights, ids))
    return float(np.mean((prediction - noise) ** 2))


def test_losses_are_those_of_numpy_until_something_is_learnt(place: Path) -> None:
    """Relative 2e-6: float32 against float64; the first batch of each step sees the adapters as they began.

    Both accumulated batches of the first step are checked: each has draws of its own.
    """
    watch = go(place, "a", (*UNET_ONLY, "--gradient_accumulation_steps=2"), steps=1)
    assert [result.has_updated for result in watch.results] == [False, True]
    expected = [expected_loss(batch, place) for batch in watch.batches]
    assert watch.losses == pytest.approx(expected, rel=2e-6)
    assert abs(expected[0] - expected[1]) > 0.01


def test_the_first_update_has_the_learning_rates_length(place: Path) -> None:
    """AdamW's first step is the rate, against the gradient; ``up`` starts at zero, so it is all that it holds."""
    watch = go(place, "a", (*UNET_ONLY, "--network_args", "conv_dim=2", "conv_alpha=2"), steps=1)
    tensors, _ = read(place, "a")
    ups = {key: tensor for key, tensor in tensors.items() if key.endswith("lora_up.weight")}
    assert {key.removesuffix(".lora_up.weight") for key in ups} == (LAYERS | CONVS) - TEXT
    for tensor in ups.values():
        np.testing.assert_allclose(np.abs(tensor), LR, rtol=1e-3)
    assert watch.results[0].grad_norm is not None


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(place: Path) -> None:
    go(place, "a", UNET_ONLY)
    first = (place / "a.safetensors").read_bytes()
    go(place, "a", (*UNET_ONLY, "--max_data_loader_n_workers=0"))
    again = (place / "a.safetensors").read_bytes()
    go(place, "a", (*UNET_ONLY, f"--seed={SEED + 1}"))
    assert first == again != (place / "a.safetensors").read_bytes()


def test_caches_on_disk_have_the_familys_endings_and_change_nothing(place: Path) -> None:
    online = go(place, "a", UNET_ONLY)
    cached = go(place, "b", CACHES)
    again = go(place, "c", CACHES)
    assert all(batch.latents is not None and batch.text is not None for batch in cached.batches)
    assert cached.losses == online.losses == again.losses
    files = {path.name for path in (place / "images").glob("*.npz")}
    assert files == {
        f"{i}{ending}" for i in range(4) for ending in (f"_{SIDE:04d}x{SIDE:04d}_toy.npz", "_toy_words.npz")
    }
    assert read(place, "a")[0].keys() == read(place, "b")[0].keys()
    for key, tensor in read(place, "a")[0].items():
        np.testing.assert_array_equal(read(place, "b")[0][key], tensor)


def test_the_file_has_the_familys_keys_and_metadata(place: Path) -> None:
    go(place, "a", ("--network_args", "conv_dim=2"), steps=4)
    tensors, metadata = read(place, "a")
    suffixes = ("lora_down.weight", "lora_up.weight", "alpha")
    assert set(tensors) == {f"{layer}.{suffix}" for layer in LAYERS | CONVS for suffix in suffixes}
    trained = {layer for layer in LAYERS | CONVS if tensors[f"{layer}.lora_up.weight"].any()}
    assert trained == (LAYERS | CONVS) - {IDLE}
    assert metadata["ss_base_model_version"] == "toy_v7"
    assert metadata["modelspec.architecture"] == "toy-denoiser/lora"
    assert metadata["modelspec.implementation"] == "the tests"
    assert metadata["ss_sd_model_name"] == "toy.safetensors"
    assert (metadata["ss_steps"], metadata["ss_epoch"], metadata["ss_num_epochs"]) == ("4", "2", "2")


def test_epochs_are_saved_on_the_way(place: Path) -> None:
    go(place, "a", (*UNET_ONLY, "--save_every_n_epochs=1", "--save_every_n_steps=3"), steps=5)
    names = {path.name for path in place.glob("a*.safetensors")}
    assert names == {"a.safetensors", "a-000001.safetensors", "a-000002.safetensors", "a-step00000003.safetensors"}
    assert not np.array_equal(
        *(read(place, name)[0]["lora_denoiser_enter_time.lora_up.weight"] for name in ("a", "a-000002"))
    )


def test_token_warmup_counts_optimizer_steps(place: Path) -> None:
    """One tag at first, one more with each step up to all five; two batches make a step."""
    for text in (place / "images").glob("*.txt"):
        text.write_text("a, b, c, d, e")
    warmup = ("--token_warmup_min=1", "--token_warmup_step=4")
    watch = go(place, "a", (*UNET_ONLY, *warmup, "--gradient_accumulation_steps=2"), steps=6)
    tags = [{len(caption.split(", ")) for caption in batch.captions} for batch in watch.batches]
    assert tags == [{1}, {1}, {2}, {2}, {3}, {3}, {4}, {4}, {5}, {5}, {5}, {5}]


def test_epochs_go_on_where_the_last_ended(place: Path) -> None:
    """Batches are numbered through the run, which names their draws, and each epoch has an order of its own."""
    watch = go(place, "a", (*UNET_ONLY, "--max_train_epochs=3"))
    assert [batch.index for batch in watch.batches] == list(range(6))
    assert [position.epoch for position in watch.positions] == [1, 1, 2, 2, 3, 3]
    orders = {tuple(batch.keys for batch in watch.batches[i : i + 2]) for i in (0, 2, 4)}
    assert len(orders) > 1
    assert all(len({key for keys in order for key in keys}) == 4 for order in orders)


def test_the_schedule_is_as_long_as_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given in epochs: a linear fall that would end at zero after the last of four steps, and two steps of warmup."""
    factors: dict[int, float] = {}
    update = Optimizer.update

    def noted(self: Optimizer, tensor: object, gradient: object, lr_factor: float, *scale: float) -> None:
        factors[self.steps] = lr_factor
        update(self, tensor, gradient, lr_factor, *scale)  # type: ignore[arg-type]

    monkeypatch.setattr(Optimizer, "update", noted)
    options = ("--max_train_epochs=2", "--lr_scheduler=linear", "--lr_warmup_steps=2")
    go(place, "a", (*UNET_ONLY, *options), steps=1600)
    assert factors == pytest.approx({1: 0.0, 2: 0.5, 3: 1.0, 4: 0.5})


def test_flags_of_the_step_reach_it(place: Path) -> None:
    """The norm is that of the mean gradient, and nothing is clipped when not asked for."""
    once = go(place, "a", UNET_ONLY, steps=1)
    assert once.results[0].grad_norm == pytest.approx(
        go(place, "b", (*UNET_ONLY, "--max_grad_norm=1e-9"), 1).results[0].grad_norm
    )
    assert go(place, "b", (*UNET_ONLY, "--max_grad_norm=0"), 1).results[0].grad_norm is None
    kept = go(place, "b", (*UNET_ONLY, "--gradient_checkpointing"))
    assert kept.losses == pytest.approx(go(place, "a", UNET_ONLY).losses, rel=1e-6)


def test_learning_rates_by_part_reach_their_parts(place: Path) -> None:
    go(place, "a", ("--text_encoder_lr=0", "--unet_lr=0.01"))
    ups = {key.split(".")[0]: x for key, x in read(place, "a")[0].items() if key.endswith("lora_up.weight")}
    assert {name for name, up in ups.items() if up.any()} == LAYERS - TEXT
    go(place, "a", ("--text_encoder_lr=0.01", "--unet_lr=0"))
    ups = {key.split(".")[0]: x for key, x in read(place, "a")[0].items() if key.endswith("lora_up.weight")}
    assert {name for name, up in ups.items() if up.any()} == {"lora_te_word_proj"}


def test_what_a_run_says_fits_its_family(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        go(place, "a", ("--dry_run",))
        go(place, "a", (), steps=1)
    said = caplog.text
    assert "memory: about" in said
    assert "denoiser 5" in said and "te 2" in said
    assert "2 tensors get no gradient" in said and IDLE in said
    for stranger in ("SDXL", "text encoder 1", "text encoder 2", "UNet reads"):
        assert stranger not in said


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_pictures(place: Path) -> None:
    weights = place / "toy.safetensors"
    with SafetensorsFile(weights) as file:
        arrays = {key: file.read(key) for key in file}
    arrays["denoiser.leave.conv.bias"][0] = np.nan
    save_file(arrays, weights, {})
    with pytest.raises(ValueError, match=r"batch 0: the loss is nan.*\.png, .*\.png"):
        go(place, "a", UNET_ONLY)
    assert not (place / "a.safetensors").exists()
