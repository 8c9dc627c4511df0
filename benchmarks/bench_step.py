"""Time a training step of the UNet with a LoRA on random weights and inputs.

With --more_pixels also what each further bucket shape costs: its first step less its second one, and memory.

python benchmarks/bench_step.py --size tiny --pixels 128 --batch 2 --rank 4 --more_pixels 192 256
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import measure
from library.device.large_pages import restart_with_large_pages
from library.families.sdxl.shapes import POSITIONS, SdxlConfig, unet_shapes
from library.models.random_weights import tiny_weights

if TYPE_CHECKING:
    from library.device.profile import Device


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse(argv)
    from mindspore import Tensor, ops

    from library.device.setup import init_device

    device = init_device("CPU", compiled=args.jit == "on")

    def multiply(a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
        left, right = Tensor(a), Tensor(b)
        return lambda: ops.matmul(left, right).asnumpy()

    step_at = build(measure.SIZES[args.size], args, device)
    figures: dict[str, object] = {**measure.measure_steps(step_at(args.pixels), args, multiply)}
    if args.more_pixels:
        figures["more_shapes"] = [shape_cost(step_at, pixels) for pixels in args.more_pixels]
    options = {name: getattr(args, name) for name in ("size", "pixels", "batch", "rank", "jit", "keep")}
    measure.report({"what": "bench_step", **options, **figures})
    return 0


def shape_cost(step_at: Callable[[int], Callable[[], object]], pixels: int) -> dict[str, float]:
    """What a shape costs that comes for the first time: seconds to compile it, and memory that stays taken."""
    step, before = step_at(pixels), measure.rss_gb()
    first, second = measure.seconds_of(step, 2)
    growth = measure.rss_gb() - before
    return {"pixels": pixels, "compile_s": round(first - second, 2), "growth_gb": round(growth, 3)}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = measure.step_parser(__doc__)
    parser.add_argument("--jit", choices=("on", "off"), default="on", help="compile the blocks")
    parser.add_argument("--keep", type=float, default=1.0, help="share of the blocks whose products are kept")
    parser.add_argument("--more_pixels", type=measure.side, nargs="+", help="further shapes that come after the timing")
    return parser.parse_args(argv)


def build(config: SdxlConfig, args: argparse.Namespace, device: "Device") -> Callable[[int], Callable[[], object]]:
    """Pixels -> a call that does one whole training step: forward, gradients, clipping, update."""
    from mindspore import Tensor

    from library.families.base import BaseWeights
    from library.families.sdxl.family import UNET_OPTIONS
    from library.families.sdxl.targets import lora_targets
    from library.models.unet import infer_unet_spec, sinusoidal_embedding, unet_forward
    from library.models.weights import to_tensors
    from library.training.optimizers.adamw import AdamW
    from library.training.optimizers.optimizer import Optimizer
    from library.training.step import StepInputs, TrainStep
    from library.training.trained import Group, trained_adapters
    from networks import lora

    generator = np.random.default_rng(0)
    arrays = dict(tiny_weights(0, dict(unet_shapes(config))))
    spec = infer_unet_spec({key: array.shape for key, array in arrays.items()}, UNET_OPTIONS)
    targets = [t for t in lora_targets(BaseWeights({"te1": {}, "te2": {}, "unet": arrays}, {})) if not t.extended]
    network = lora.create_network(
        targets,
        network_dim=args.rank,
        network_alpha=1.0,
        network_dropout=None,
        network_args={},
        generator_of=lambda name: generator,
    )
    blocks = spec.blocks()
    trained = trained_adapters(network, blocks, lambda key: Group("unet", 1e-4))
    optimizer = Optimizer(AdamW(), trained.tensors, device)
    weights = {"unet": to_tensors(arrays)}
    train_step = TrainStep(weights, blocks, trained, optimizer, device, max_grad_norm=1.0, keep=args.keep)

    def random(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, np.float32)

    sinusoid = Tensor(sinusoidal_embedding(np.full(args.batch, 500), spec.sinusoid_width))
    vector = Tensor(random(args.batch, spec.vector_width))
    context = Tensor(random(args.batch, POSITIONS, spec.context_width))
    ones = np.ones((args.batch, 1, 1, 1), np.float32)

    def step_at(pixels: int) -> Callable[[], None]:
        noisy, target = random(2, args.batch, 4, pixels // 8, pixels // 8)
        noisy_tensor = Tensor(noisy)

        def predict(run: Callable[..., Tensor]) -> Tensor:
            return unet_forward(spec, run, noisy_tensor, sinusoid, vector, context)

        def step() -> None:
            train_step(StepInputs(predict, target, ones, 0), 1.0)

        return step

    return step_at


if __name__ == "__main__":
    restart_with_large_pages()
    sys.exit(main())
