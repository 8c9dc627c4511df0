"""Draw a picture with mindone's StableDiffusionXLPipeline instead of this project's code.

For those who want to see that a LoRA works elsewhere: mindone reads the LoRA and computes everything; the base model's
tensors are handed to it by name. Same seed, same initial noise as sdxl_minimal_inference.py with --scheduler euler, so
both should draw the same picture. Works without a network; needs requirements-mindone.txt.

python tools/draw_with_mindone.py --ckpt_path sd_xl_base.safetensors --lora_weights "my_lora.safetensors;0.8" \
    --prompt "a photo of a cat" --seed 1 --output_dir pictures
"""

import argparse
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from library.files.whole_file import ensure_writable
from library.settings.flag_groups import RunArgs
from library.settings.log_setup import setup_logging
from library.settings.sizes import LATENT_CHANNELS, LATENT_PIXELS

logger = logging.getLogger("draw_with_mindone")

Lora = tuple[Path, float]


def build_parser() -> argparse.ArgumentParser:
    """The command line, with the names of sdxl_minimal_inference.py."""
    parser = argparse.ArgumentParser(description="Draw a picture with mindone's StableDiffusionXLPipeline.")
    add = parser.add_argument
    add("--ckpt_path", required=True, help="SDXL base model: a .safetensors file or a diffusers folder")
    add("--lora_weights", nargs="*", type=_lora, default=[], metavar="FILE;MULTIPLIER", help="LoRAs with strengths (1)")
    add("--prompt", default="A photo of a cat", help="what to draw")
    add("--negative_prompt", default="", help="what the picture should not show")
    add("--guidance_scale", type=float, default=7.0, help="classifier-free guidance; 1 or less is off (7)")
    add("--steps", type=int, default=50, help="denoising steps of mindone's Euler sampler (50)")
    add("--seed", type=int, default=1, help="of the initial noise (1)")
    add("--W", type=int, default=1024, help="width in pixels (1024)")
    add("--H", type=int, default=1024, help="height in pixels (1024)")
    add("--output_dir", type=Path, default=Path("."), help="folder for the picture; made when absent")
    add("--device", default="auto", help="auto, CPU or Ascend")
    return parser


def _lora(text: str) -> Lora:
    name, _, multiplier = text.partition(";")
    strength = float(multiplier or "1")
    if not math.isfinite(strength):
        raise argparse.ArgumentTypeError(f"{text}: the multiplier must be a finite number")
    if not Path(name).is_file():
        raise argparse.ArgumentTypeError(f"{name}: there is no such file")
    return Path(name), strength


def load_loras(pipeline: Any, loras: Sequence[Lora]) -> None:
    """Have mindone read the files and apply them beside the weights."""
    names = [f"lora_{number}" for number in range(len(loras))]
    for name, (path, _) in zip(names, loras, strict=True):
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    if loras:
        pipeline.set_adapters(names, [strength for _, strength in loras])


def initial_noise(seed: int, width: int, height: int) -> np.ndarray:
    """Standard normal float32 [1, 4, H / 8, W / 8], as sdxl_minimal_inference.py draws it."""
    shape = (1, LATENT_CHANNELS, height // LATENT_PIXELS, width // LATENT_PIXELS)
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape, dtype=np.float32)


def draw(args: argparse.Namespace) -> Path:
    """Load, draw, save; returns the picture's path.

    Raises:
        ValueError: a file cannot be read, mindone is missing, or the size cannot be drawn.
    """
    from mindspore import Tensor

    from library.device.setup import init_device
    from library.families.sdxl.checkpoint import load_weights
    from tools.mindone_pipeline import sdxl_pipeline

    if min(args.W, args.H) < LATENT_PIXELS or args.W % LATENT_PIXELS or args.H % LATENT_PIXELS:
        raise ValueError(f"--W {args.W} --H {args.H}: both must be multiples of {LATENT_PIXELS}")
    ensure_writable(args.output_dir)
    init_device(args.device)
    pipeline = sdxl_pipeline(load_weights(args.ckpt_path))
    load_loras(pipeline, args.lora_weights)
    (images,) = pipeline(
        args.prompt,
        negative_prompt=args.negative_prompt,
        width=args.W,
        height=args.H,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        latents=Tensor(initial_noise(args.seed, args.W, args.H)),
    )
    path: Path = args.output_dir / f"mindone_{args.seed}.png"
    images[0].save(path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings speak to its own developers; its errors are shown
    setup_logging(RunArgs())
    try:
        logger.info("saved %s", draw(args))
    except ValueError as error:
        logger.error("error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
