"""Losses, gradient norms and learning rates of two short runs on the tiny SDXL, kept in tests/golden/losses.

python -m tests.record_golden_losses            compare, and print the largest differences
python -m tests.record_golden_losses --write    record anew

Recording anew is allowed when a change is meant to move these numbers: another draw of something random, another order
of what is drawn, another default of a flag used here, a fault that was corrected. The commit says which, and shows by
other means (a recording of the original, a formula, a test) that the new numbers are right. It is never allowed to make
a test pass: what is faster, or tidier, gives the same losses.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from library.data.batch import Batch
from library.families.sdxl.family import SdxlFamily
from library.runs.loop import Follower, Position
from library.runs.train_network import train_network
from library.settings.arguments import read_train_args
from library.training.optimizers.optimizer import Optimizer
from library.training.step import StepResult
from tools.make_demo_data import make_demo_data
from tools.make_tiny_sdxl import make_tiny_sdxl

FOLDER = Path(__file__).parent / "golden" / "losses"
PICTURES, SIDE = 5, 64
"""Each picture is shown twice in an epoch of five batches of two."""
COMMON = "--network_module=networks.lora --learning_rate=2e-3 --seed=42 --max_train_steps=20 --gradient_checkpointing"
RUNS: Mapping[str, str] = MappingProxyType({
    "demo": "--network_dim=16 --network_alpha=16 --network_train_unet_only --optimizer_type=AdamW",
    "everything": (
        "--network_dim=4 --network_alpha=2 --gradient_accumulation_steps=2 --noise_offset=0.05 --ip_noise_gamma=0.1 "
        "--network_dropout=0.1 --network_args rank_dropout=0.1 loraplus_unet_lr_ratio=4 --text_encoder_lr=5e-4 "
        "--lr_scheduler=cosine --lr_warmup_steps=5 --token_warmup_min=1 --token_warmup_step=8 --min_snr_gamma=5"
    ),
})  # fmt: skip
"""Name -> flags beside the common ones; the first is demo.sh's command, smaller."""
TOLERANCE = 1e-5
"""Relative. Another number of cores, or another processor, takes sums in another order; what rounding moves is moved on
by every update. A wrong draw, rate or order moves a loss by more than 1e-3."""
NORM_TOLERANCE = 1e-3
"""Relative; gradients see the same rounding enlarged, and sums of many small ones more so."""

Numbers = dict[str, Any]


class Recorder(Follower):
    """Keeps what came of each batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.captions: list[tuple[str, ...]] = []

    def after_batch(self, position: Position, batch: Batch, result: StepResult) -> None:
        """See Follower."""
        self.losses.append(result.loss)
        self.captions.append(batch.captions)

    def after_step(self, position: Position, result: StepResult) -> None:
        """See Follower."""
        assert result.grad_norm is not None
        self.grad_norms.append(result.grad_norm)


@contextmanager
def _rates() -> Iterator[list[dict[str, float]]]:
    """By optimizer step: group -> learning rate, as the optimizer is given them."""
    rates: list[dict[str, float]] = []
    update = Optimizer.update

    def noted(self: Optimizer, tensor: Any, gradient: Any, lr_factor: float, *scale: float) -> None:
        if len(rates) < self.steps:
            rates.append({})
        rates[self.steps - 1][tensor.group.name] = tensor.group.lr * lr_factor
        update(self, tensor, gradient, lr_factor, *scale)

    Optimizer.update = noted  # type: ignore[assignment,method-assign]
    try:
        yield rates
    finally:
        Optimizer.update = update  # type: ignore[method-assign]


def compute(name: str, folder: Path) -> Numbers:
    """Run one of the runs in a folder of its own; returns what is recorded of it."""
    tiny = folder / "tiny.safetensors"
    if not tiny.exists():
        make_tiny_sdxl(tiny, 1)
    config = make_demo_data(folder / "data", PICTURES, SIDE)
    text = config.read_text(encoding="utf-8").replace("enable_bucket = true", "enable_bucket = false")
    config.write_text(text, encoding="utf-8")
    paths = (f"--pretrained_model_name_or_path={tiny}", f"--dataset_config={config}", f"--output_dir={folder / name}")
    recorder = Recorder()
    with _rates() as rates:
        train_network(read_train_args([*paths, *COMMON.split(), *RUNS[name].split()]), SdxlFamily(), [recorder])
    return {
        "flags": f"{COMMON} {RUNS[name]}",
        "losses": recorder.losses,
        "grad_norms": recorder.grad_norms,
        "learning_rates": rates,
        "captions": [list(captions) for captions in recorder.captions],
    }


def recorded(name: str) -> Numbers:
    """What was recorded of a run."""
    numbers: Numbers = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return numbers


def difference(found: Numbers, expected: Numbers, what: str) -> float:
    """The largest relative difference of a list of numbers."""
    mine, theirs = (np.array(numbers[what]) for numbers in (found, expected))
    return float(np.max(np.abs(mine - theirs) / np.abs(theirs)))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record anew")
    args = parser.parse_args()
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            found = compute(name, Path(folder))
        if args.write:
            FOLDER.mkdir(parents=True, exist_ok=True)
            (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        expected = recorded(name)
        differences = {what: difference(found, expected, what) for what in ("losses", "grad_norms")}
        print(f"{name}: largest relative differences {differences}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
