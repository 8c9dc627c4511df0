"""Draw pictures with Stable Diffusion XL and LoRAs; the command line is that of kohya's script, and more."""

import argparse
import logging
import math
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from library.data.text.prompt_syntax import line_to_prompt_dict
from library.device.large_pages import restart_with_large_pages
from library.families.sdxl.facts import SIZE_STEP
from library.runs.samplers import SAMPLER_HELP, find_sampler
from library.settings.flag_groups import ComputeArgs, ModelArgs, RunArgs
from library.settings.log_setup import setup_logging

if TYPE_CHECKING:  # imported late, so that --help and a wrong flag answer at once
    from library.runs.drawing import Picture, Studio

logger = logging.getLogger("sdxl_minimal_inference")

MIN_SIDE = 2 * SIZE_STEP
"""Of pictures, in pixels."""
LINE_OPTIONS = "--w --h --d --s --l --n --ss"
_USED_KEYS = ("prompt", "width", "height", "seed", "sample_steps", "scale", "negative_prompt", "sample_sampler")
"""What those options and the prompt are called in a parsed line."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--ckpt_path", required=True, help="SDXL base model: a .safetensors file, a diffusers folder, or a hub name")
    add("--vae", help="file or folder whose VAE replaces the model's own")
    add("--prompt", nargs="+", default=["A photo of a cat"], help="one or more prompts")
    add("--prompt2", help="prompt for text encoder 2; unset is the prompt")
    add("--negative_prompt", default="", help="what the pictures should not show")
    add("--output_dir", type=Path, default=Path("."), help="folder for the pictures; made when absent")
    add("--lora_weights", nargs="*", default=[], metavar="FILE;MULTIPLIER", help="LoRAs, each with its strength (1)")
    add("--no_merge", action="store_true", help="apply the LoRAs beside the weights instead of adding them to these")
    add("--interactive", action="store_true", help=f"read prompts, one per line, with kohya's options {LINE_OPTIONS}")
    add("--steps", type=int, default=50, help="denoising steps (50)")
    add("--guidance_scale", type=_finite, default=7.0, help="classifier-free guidance; 1 or less is off (7)")
    add("--seed", type=int, help="seed of the first picture, the next ones count up; unset draws one")
    add("--W", type=int, default=1024, help="width in pixels (1024)")
    add("--H", type=int, default=1024, help="height in pixels (1024)")
    add("--scheduler", default="euler", help=f"sampler: {SAMPLER_HELP} (euler)")
    add("--n_images", type=int, default=1, help="pictures per prompt (1)")
    add("--latents", type=Path, help="initial noise [B, 4, H/8, W/8]: .npy, or .safetensors with one tensor")
    add("--v_parameterization", action="store_true", help="the model predicts velocity")
    for group, name, text in (
        (ModelArgs, "te2_projection", "see sdxl_train_network.py --help"),
        (ComputeArgs, "device", "where to compute (auto)"),
        (ComputeArgs, "jit", "compile the model's blocks; off is for debugging"),
    ):
        add(f"--{name}", choices=get_args(get_type_hints(group)[name]), default=vars(group)[name], help=text)
    return parser


def check(args: argparse.Namespace) -> list[tuple[Path, float]]:
    """Find everything wrong on the command line; returns the LoRA files and their strengths.

    Raises:
        ValueError: lists all problems.
    """
    problems, loras = [], []
    for text in args.lora_weights:
        name, _, multiplier = text.partition(";")
        try:
            loras.append((Path(name), _finite(multiplier or "1")))
        except ValueError:
            problems.append(f"--lora_weights {text}: {multiplier!r} is not a number; write FILE;MULTIPLIER")
    files = [("--lora_weights", path) for path, _ in loras]
    files += [("--latents", args.latents)] if args.latents else []
    problems += [f"{flag} {path}: there is no such file" for flag, path in files if not path.is_file()]
    problems += size_problems(args.W, args.H, "--W and --H")
    least = (("n_images", args.n_images, 1), ("seed", args.seed or 0, 0))
    problems += [f"--{name} {value}: must be at least {limit}" for name, value, limit in least if value < limit]
    try:
        find_sampler(args.scheduler, args.steps)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return loras


def _finite(text: str) -> float:
    """A number that is neither infinite nor NaN; for argparse too."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def size_problems(width: int, height: int, where: str) -> list[str]:
    """Why a picture cannot have this size."""
    if min(width, height) < MIN_SIDE or width % SIZE_STEP or height % SIZE_STEP:
        return [f"{where} {width} x {height}: each must be a multiple of {SIZE_STEP} and at least {MIN_SIDE}"]
    return []


def open_studio(args: argparse.Namespace, loras: list[tuple[Path, float]]) -> "Studio":
    """Load the model with its LoRAs.

    Raises:
        ValueError: a file is missing, not whole, or does not fit.
    """
    from library.device.setup import init_device
    from library.families.sdxl.family import SdxlFamily
    from library.files.whole_file import ensure_writable
    from library.runs.drawing import Studio, load_with_networks

    ensure_writable(args.output_dir)
    family = SdxlFamily(args.te2_projection)
    device = init_device(args.device, compiled=args.jit != "off")
    model = load_with_networks(family, args.ckpt_path, args.vae, loras, device, is_merged=not args.no_merge)
    names = tuple(f"{path.name};{multiplier:g}" for path, multiplier in loras)
    name = Path(args.ckpt_path).name
    return Studio(family, model, family.tokenizers(), args.v_parameterization, names, name, args.output_dir)


def interactive(args: argparse.Namespace, first: "Picture", draw_one: Callable[["Picture", int], Path]) -> None:
    """Draw what is typed, line by line, until the input ends or a line is empty; a mistake is told and passed over."""
    index = 0
    while line := _read_line():
        try:
            picture = picture_of_line(args, first, line, index)
            logger.info("saved %s", draw_one(picture, index))
            index += 1
        except ValueError as error:
            logger.error("%s", error)


def _read_line() -> str:
    try:
        return input("prompt (empty line ends): ").strip()
    except EOFError:
        return ""


def picture_of_line(args: argparse.Namespace, first: "Picture", line: str, index: int) -> "Picture":
    """What a typed line asks for; what it leaves out is as on the command line.

    Raises:
        ValueError: an option has a value that cannot be drawn.
    """
    options: dict[str, Any] = line_to_prompt_dict(line)
    for key in options:
        if key not in _USED_KEYS:
            logger.warning("the line's %s is not used here; options are %s", key, LINE_OPTIONS)
    prompt = options["prompt"]
    picture = replace(
        first,
        prompt=prompt,
        prompt2=args.prompt2 or prompt,
        negative_prompt=options.get("negative_prompt", first.negative_prompt),
        width=options.get("width", first.width),
        height=options.get("height", first.height),
        steps=options.get("sample_steps", first.steps),
        guidance_scale=options.get("scale", first.guidance_scale),
        scheduler=options.get("sample_sampler", first.scheduler),
        seed=options.get("seed", first.seed + index),
    )
    find_sampler(picture.scheduler, picture.steps)
    if problems := size_problems(picture.width, picture.height, "--w and --h"):
        raise ValueError(problems[0])
    return picture


def run(args: argparse.Namespace) -> None:
    """Draw everything that was asked for."""
    from library.runs.drawing import Picture, draw, read_noise

    loras = check(args)
    noise = read_noise(args.latents) if args.latents else None
    studio = open_studio(args, loras)
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    first = Picture(
        args.prompt[0], args.prompt2 or args.prompt[0], args.negative_prompt, args.W, args.H, args.steps,
        args.guidance_scale, args.scheduler, seed,
    )  # fmt: skip

    def draw_one(picture: Picture, index: int, number: int = 0) -> Path:
        return draw(studio, picture, index, None if noise is None else noise[[number % len(noise)]])

    if args.interactive:
        interactive(args, first, draw_one)
        return
    for index, prompt in enumerate(args.prompt):
        for number in range(args.n_images):
            picture = replace(first, prompt=prompt, prompt2=args.prompt2 or prompt, seed=seed + number)
            logger.info("saved %s", draw_one(picture, index, number))


def main() -> None:
    """Parse the command line and draw; an error is one message and exit code 1."""
    args = build_parser().parse_args()
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings speak to its own developers; its errors are shown
    setup_logging(RunArgs())
    try:
        run(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")


if __name__ == "__main__":
    restart_with_large_pages()
    main()
