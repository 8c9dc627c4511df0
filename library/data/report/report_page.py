"""The data set as one web page: buckets, caption lengths, suspicious files, and samples as the model sees them.

The page needs nothing but itself: charts are inline SVG, pictures are embedded, there are no scripts.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from library.data.images.image_util import load_rgb
from library.data.report.lint import LintGroup
from library.data.report.plan import DatasetPlan, Plan
from library.data.report.preview import SeenSample
from library.data.report.report_charts import bucket_chart, token_chart
from library.data.report.report_style import STYLE
from library.files.whole_file import write_whole_bytes

THUMBNAIL = 280
"""Longest side of an embedded picture, in pixels."""

_SAMPLES = "Cropped, mirrored and with captions as in the first epoch. What a mask keeps out of the loss is veiled."
_TOKENS = "Captions by their number of tokens. What is beyond the limit is not trained; such captions are marked."

LISTED = 200
"""Findings of a kind that are listed; of the rest the number is told."""

PICTURED = 12
"""Findings of a kind that are shown with pictures, where these help."""

VEIL = "#d63384"
"""Colour that covers what a mask keeps out of the loss."""

FILES_PICTURED = 4
SMALL = 110
"""Pictures of one finding at most, and their longest side in pixels."""


def write_report(
    path: Path, plan: Plan, length: Sequence[str], groups: Sequence[LintGroup], samples: Iterable[SeenSample]
) -> None:
    """Write the page. `length`: lines on how long the run is. Raises ValueError when the file cannot be written."""
    page = report_page(plan, length, groups, samples).encode("utf-8", "backslashreplace")
    write_whole_bytes(path, page)


def report_page(plan: Plan, length: Sequence[str], groups: Sequence[LintGroup], samples: Iterable[SeenSample]) -> str:
    """The page as HTML; everything that comes from files is escaped."""
    figures = "".join(map(_figure, samples))
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>What will be trained</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body><h1>What will be trained</h1>",
        _tiles(plan, groups),
        *(f"<p>{escape(line)}</p>" for line in length),
        *("<p>" + escape(note) + "</p>" for note in plan.notes),
        "<h2>Buckets</h2>",
        *map(_dataset, plan.datasets),
        "<h2>Caption lengths</h2>",
        _captions(plan),
        "<h2>Worth a look</h2>",
        _lint(groups),
        "<h2>The first samples, as the model sees them</h2>",
        f"<p>{_SAMPLES}</p>",
        f'<div class="sheet">{figures}</div>',
        "</body></html>",
    ]
    return "\n".join(parts)


def _tiles(plan: Plan, groups: Sequence[LintGroup]) -> str:
    subsets = [subset for dataset in plan.datasets for subset in dataset.subsets]
    tiles = [
        ("images", plan.images, False),
        ("samples per epoch", sum(subset.samples for subset in subsets), False),
        ("buckets", sum(len(dataset.buckets) for dataset in plan.datasets), False),
        ("batches per epoch", plan.batches_per_epoch, False),
        ("captions cut", len(plan.cut_captions), True),
        ("without caption", len(plan.missing_captions), True),
        ("things worth a look", sum(len(group.findings) for group in groups), True),
    ]
    cells = [
        f'<div class="tile{" bad" if warns and count else ""}"><b>{count:,}</b><span>{name}</span></div>'
        for name, count, warns in tiles
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _dataset(plan: DatasetPlan) -> str:
    rows = "".join(
        f"<tr><td>{escape(subset.name)}{' (regularisation)' if subset.is_reg else ''}</td><td>{subset.images:,}</td>"
        f"<td>{subset.num_repeats}</td><td>{subset.samples:,}</td></tr>"
        for subset in plan.subsets
    )
    width, height = plan.resolution
    return (
        f'<div class="card"><h3>{escape(plan.source or "data set")}: {width} x {height}, batch size '
        f"{plan.batch_size}{'' if plan.enable_bucket else ', no buckets'}</h3>"
        f"<table><tr><th>subset</th><th>images</th><th>repeats</th><th>samples</th></tr>{rows}</table>"
        f'{bucket_chart(plan)}<p class="legend">The light end of a bar is the share of the pixels that the crop cuts '
        "off.</p></div>"
    )


def _captions(plan: Plan) -> str:
    if not plan.caption_lengths:
        return '<div class="card">not measured</div>'
    return f'<div class="card">{token_chart(plan.caption_lengths)}<p class="legend">{_TOKENS}</p></div>'


def _lint(groups: Sequence[LintGroup]) -> str:
    if not groups:
        return '<div class="card none">Nothing found.</div>'
    return f'<div class="card">{"".join(map(_lint_group, groups))}</div>'


def _lint_group(group: LintGroup) -> str:
    entries = "".join(
        f"<li><code>{escape(what)}</code><br><span>{escape(seen)}</span>"
        f"{_pictures(what) if group.pictured and number < PICTURED else ''}</li>"
        for number, (what, seen) in enumerate(group.findings[:LISTED])
    )
    rest = len(group.findings) - LISTED
    more = f"<p>and {rest:,} more</p>" if rest > 0 else ""
    return (
        f'<details><summary><span class="count">{len(group.findings):,}</span>{escape(group.title)}</summary>'
        f"<p>{escape(group.advice)}</p><ul>{entries}</ul>{more}</details>"
    )


def _pictures(paths: str) -> str:
    """Small pictures of the first few files of a finding."""
    shown = (Image.fromarray(load_rgb(path)) for path in paths.split("\n")[:FILES_PICTURED])
    return (
        '<div class="small">' + "".join(f'<img src="{_embedded(image, SMALL)}" alt="">' for image in shown) + "</div>"
    )


def _figure(sample: SeenSample) -> str:
    width, height = sample.picture.size
    shown = sample.picture if sample.mask is None else _dimmed(sample.picture, sample.mask)
    caption = escape(sample.caption) if sample.caption else '<span class="empty">no caption</span>'
    return (
        f'<figure><img src="{_embedded(shown)}" alt="sample {sample.number}" loading="lazy"><figcaption>'
        f'<span class="where" title="{escape(sample.path)}">{escape(Path(sample.path).name)}, {width} x {height}'
        f'</span><span class="caption">{caption}</span></figcaption></figure>'
    )


def _dimmed(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with a veil over what its mask keeps out of the loss."""
    veil = Image.blend(picture, Image.new("RGB", picture.size, VEIL), 0.75)
    return Image.composite(picture, veil, mask)


def _embedded(picture: Image.Image, longest: int = THUMBNAIL) -> str:
    small = picture.copy()
    small.thumbnail((longest, longest))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
