"""Put the pictures of several folders next to each other, each under its title.

python -m tools.side_by_side --output both.png "without LoRA=FOLDER_OR_FILE" "with LoRA=FOLDER_OR_FILE"
"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw

TITLE_HEIGHT = 22
GAP = 8
MIN_SIDE = 256
"""Smaller pictures are enlarged by a whole factor, so that they can be seen."""


def newest_picture(place: Path) -> Path:
    """The file itself, or the newest PNG of a folder.

    Raises:
        ValueError: there is none.
    """
    if place.is_file():
        return place
    pictures = sorted(place.glob("*.png"), key=lambda path: path.stat().st_mtime)
    if not pictures:
        raise ValueError(f"no .png in {place}")
    return pictures[-1]


def side_by_side(titled: list[tuple[str, Image.Image]]) -> Image.Image:
    """One row of pictures with their titles above."""
    factor = max(1, -(-MIN_SIDE // min(min(image.size) for _, image in titled)))
    images = [(t, im.resize((im.width * factor, im.height * factor), Image.Resampling.NEAREST)) for t, im in titled]
    width = sum(image.width for _, image in images) + GAP * (len(images) + 1)
    height = max(image.height for _, image in images) + TITLE_HEIGHT + GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen, x = ImageDraw.Draw(sheet), GAP
    for title, image in images:
        pen.text((x, 5), title, fill="black")
        sheet.paste(image, (x, TITLE_HEIGHT))
        x += image.width + GAP
    return sheet


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    parser.add_argument("pictures", nargs="+", metavar="TITLE=PLACE", help="title, and a PNG or a folder of them")
    args = parser.parse_args()
    try:
        titled = [
            (title, Image.open(newest_picture(Path(place))).convert("RGB"))
            for title, _, place in (text.partition("=") for text in args.pictures)
        ]
    except ValueError as error:
        sys.exit(f"error: {error}")
    side_by_side(titled).save(args.output)


if __name__ == "__main__":
    main()
