"""Time a training step of the UNet with a LoRA on random weights and inputs.

python benchmarks/bench_step.py --size tiny --pixels 128 --batch 2 --rank 4
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import measure
from library.models.random_weights import tiny_weights
from library.models.sdxl_spec import POSITIONS, SdxlConfig, unet_shapes


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse(argv)
    from mindspore import Tensor, ops

    from library.device.device_utils import init_device

    init_device("CPU")

    def multiply(a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
        left, right = Tensor(a), Tensor(b)
        return lambda: ops.matmul(left, right).asnumpy()

    figures = measure.measure_steps(build(measure.SIZES[args.size], args), args, multiply)
    options = {name: getattr(args, name) for name in ("size", "pixels", "batch", "rank", "jit", "keep")}
    measure.report({"what": "bench_step", **options, **figures})
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = measure.step_parser(__doc__)
    parser.add_argument("--jit", choices=("on", "off"), default="on", help="compile the blocks")
    parser.add_argument("--keep", type=float, default=1.0, help="share of the blocks whose products are kept")
    args = parser.parse_args(argv)
    if args.pixels % 32 or args.pixels < 32:
        parser.error(f"--pixels {args.pixels}: give a multiple of 32")
    return args


def build(config: SdxlConfig, args: argparse.Namespace) -> Callable[[], object]:
    """A call that does one whole training step: forward, gradients, clipping, update."""
    from mindspore import Tensor

    from library.models import sdxl
    from library.models.sdxl_model_util import SdxlWeights, lora_targets
    from library.models.unet import infer_unet_spec, unet_forward
    from library.models.weights import to_tensors
    from library.training.optimizers import AdamW, FlatOptimizer
    from library.training.train_util import TrainStep
    from library.training.trainable import Trainable
    from networks import lora

    generator = np.random.default_rng(0)
    arrays = dict(tiny_weights(0, dict(unet_shapes(config))))
    spec = infer_unet_spec({key: array.shape for key, array in arrays.items()})
    targets = [t for t in lora_targets(SdxlWeights({"te1": {}, "te2": {}, "unet": arrays}, {})) if not t.extended]
    network = lora.create_network(
        targets,
        network_dim=args.rank,
        network_alpha=1.0,
        network_dropout=None,
        network_args={},
        generator_of=lambda name: generator,
    )
    blocks = spec.blocks()
    trainable = Trainable(network, blocks)
    compiled = args.jit == "on"
    optimizer = FlatOptimizer(AdamW(), trainable.size, 1e-4, compiled)
    weights = {"unet": to_tensors(arrays)}
    train_step = TrainStep(weights, blocks, trainable, optimizer, max_grad_norm=1.0, compiled=compiled, keep=args.keep)
    side = args.pixels // 8

    def random(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, np.float32)

    noisy, target = random(args.batch, 4, side, side), random(args.batch, 4, side, side)
    sinusoid = Tensor(sdxl.sinusoidal_embedding(np.full(args.batch, 500), spec.sinusoid_width))
    vector = Tensor(random(args.batch, spec.vector_width))
    context = Tensor(random(args.batch, POSITIONS, spec.context_width))
    noisy_tensor, ones = Tensor(noisy), np.ones(args.batch, np.float32)

    def predict(run: Callable[..., Tensor]) -> Tensor:
        return unet_forward(spec, run, noisy_tensor, sinusoid, vector, context)

    def step() -> None:
        train_step.accumulate(predict, target, ones, 0)
        train_step.update(1.0)

    return step


if __name__ == "__main__":
    sys.exit(main())
