"""Draw a small captioned picture set in several aspect ratios, with a dataset TOML that trains on it.

python tools/make_demo_data.py --output_dir demo_output/data [--count 12] [--resolution 128]
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

SIZES = ((192, 192), (256, 160), (208, 224), (240, 152))
COLOURS = {"red": "#d8342c", "blue": "#2f5fd0", "green": "#2f9e44", "yellow": "#f2c230", "violet": "#8b4fc4"}
GROUNDS = {"white": "#f6f4ef", "black": "#202024", "grey": "#9aa0a6"}
SHAPES = ("circle", "square", "triangle")
TOML = """# Made by tools/make_demo_data.py
[general]
caption_extension = ".txt"
shuffle_caption = true
keep_tokens = 1
enable_bucket = true
bucket_reso_steps = 32
min_bucket_reso = 64
max_bucket_reso = {longest}

[[datasets]]
resolution = {resolution}
batch_size = 2

  [[datasets.subsets]]
  image_dir = "{image_dir}"
  num_repeats = 2
"""


def draw(shape: str, colour: str, ground: str, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """One flat shape on a plain ground."""
    image = Image.new("RGB", size, GROUNDS[ground])
    side = min(size) * rng.uniform(0.5, 0.75)
    x, y = rng.uniform(0, size[0] - side), rng.uniform(0, size[1] - side)
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((x, y, x + side, y + side), fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle((x, y, x + side, y + side), fill=COLOURS[colour])
    else:
        pen.polygon(((x, y + side), (x + side / 2, y), (x + side, y + side)), fill=COLOURS[colour])
    return image


def make_demo_data(folder: Path, count: int, resolution: int, seed: int = 0) -> Path:
    """Write pictures, captions and data.toml below a folder; returns the TOML's path."""
    rng = random.Random(seed)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        shape, colour, ground = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(GROUNDS))
        size = SIZES[number % len(SIZES)]
        draw(shape, colour, ground, size, rng).save(images / f"{number:02d}.png")
        caption = f"flatshape, {colour} {shape}, {ground} background, simple drawing"
        (images / f"{number:02d}.txt").write_text(caption + "\n", encoding="utf-8")
    config = folder / "data.toml"
    longest = 2 * resolution
    text = TOML.format(longest=longest, resolution=resolution, image_dir=images.resolve().as_posix())
    config.write_text(text, encoding="utf-8")
    return config


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write to; made when absent")
    parser.add_argument("--count", type=int, default=12, help="number of pictures (default 12)")
    parser.add_argument("--resolution", type=int, default=128, help="training resolution written to the TOML")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pictures")
    args = parser.parse_args(argv)
    print(f"wrote {make_demo_data(args.output_dir, args.count, args.resolution, args.seed)}")


if __name__ == "__main__":
    main()
