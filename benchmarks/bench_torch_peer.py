"""The same training step with diffusers and peft on torch's CPU build, to compare with; not a part of the trainer.

pip install -r benchmarks/requirements-peer.txt     (into an environment of its own)
python benchmarks/bench_torch_peer.py --size tiny --pixels 128 --batch 2 --rank 4 --threads 1
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: without it its threads spin and hold the cores
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from benchmarks import measure
from library.families.sdxl.shapes import CHANNEL_MULT, POSITIONS, TRANSFORMER_DEPTH, SdxlConfig

HEAD_WIDTH = 64
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = measure.step_parser(__doc__)
    parser.add_argument("--checkpointing", choices=("on", "off"), default="off", help="gradient checkpointing")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    def multiply(a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
        left, right = torch.from_numpy(a), torch.from_numpy(b)
        return lambda: left @ right

    figures = measure.measure_steps(build(measure.SIZES[args.size], args), args, multiply)
    options = {name: getattr(args, name) for name in ("size", "pixels", "batch", "rank", "checkpointing", "threads")}
    measure.report({"what": "bench_torch_peer", **options, **figures})
    return 0


def build(config: SdxlConfig, args: argparse.Namespace) -> Callable[[], object]:
    """A call that does one whole training step: forward, gradients, clipping, update."""
    torch.manual_seed(0)
    widths = tuple(config.model_channels * mult for mult in CHANNEL_MULT)
    crossing, plain = "CrossAttn{}Block2D", "{}Block2D"
    down = [(crossing if depth else plain).format("Down") for depth in TRANSFORMER_DEPTH]
    up = [(crossing if depth else plain).format("Up") for depth in reversed(TRANSFORMER_DEPTH)]
    unet = UNet2DConditionModel(
        sample_size=args.pixels // 8,
        block_out_channels=widths,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        transformer_layers_per_block=tuple(max(depth, 1) for depth in TRANSFORMER_DEPTH),
        attention_head_dim=tuple(max(width // HEAD_WIDTH, 1) for width in widths),  # diffusers' name for the count
        cross_attention_dim=config.context_width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=config.label_width,
    )
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=args.rank, lora_alpha=1, target_modules=LORA_TARGETS))
    unet.train()
    if args.checkpointing == "on":
        unet.enable_gradient_checkpointing()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    side = args.pixels // 8
    noisy, target = torch.randn(2, args.batch, 4, side, side)
    context = torch.randn(args.batch, POSITIONS, config.context_width)
    added = {"text_embeds": torch.randn(args.batch, config.text_2_width), "time_ids": torch.ones(args.batch, 6)}

    def step() -> None:
        pred = unet(noisy, torch.full((args.batch,), 500), context, added_cond_kwargs=added).sample
        loss = torch.nn.functional.mse_loss(pred, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    assert len(trained) == 2 * 722, len(trained)
    return step


if __name__ == "__main__":
    sys.exit(main())
