"""Charts of the report page as inline SVG; colours are classes of its style sheet."""

from collections.abc import Sequence
from html import escape

from library.data.report.plan import BucketPlan, CaptionLength, DatasetPlan
from library.settings.counted import counted

WIDTH = 860
"""Units of a chart's width; the page scales it."""

_ROW = 30
_ICON = 24
_LABEL_X = 34
_BARS_X = 130
_BARS_WIDTH = 400
_BIN = 5  # tokens
_LAST_BIN = 60  # longer captions are counted in it
_PLOT_HEIGHT = 150


def bucket_chart(plan: DatasetPlan) -> str:
    """One row per bucket: its shape, a bar of its samples, and how much is cut off."""
    most = max((bucket.samples for bucket in plan.buckets), default=1)
    longest = max((max(bucket.resolution) for bucket in plan.buckets), default=1)
    rows = [_bucket_row(bucket, number, most, longest) for number, bucket in enumerate(plan.buckets)]
    return _svg(_ROW * len(plan.buckets), rows, "Samples per bucket")


def _bucket_row(bucket: BucketPlan, number: int, most: int, longest: int) -> str:
    width, height = bucket.resolution
    top, middle = number * _ROW, number * _ROW + _ROW / 2
    icon_width, icon_height = width / longest * _ICON, height / longest * _ICON
    kept = _BARS_WIDTH * bucket.samples / most
    cut = kept * bucket.crop_share
    batches = counted(bucket.batches, "batch", "batches")
    cut_off = f", {bucket.crop_share:.1%} cut off" if bucket.crop_share else ""
    enlarged = f", {bucket.enlarged} enlarged" if bucket.enlarged else ""
    text = f"{bucket.samples} in {batches}{cut_off}{enlarged}"
    return (
        _rect("shape", (_ICON - icon_width) / 2, middle - icon_height / 2, icon_width, icon_height)
        + _text(_LABEL_X, middle, f"{width} x {height}")
        + _rect("bar", _BARS_X, top + 6, kept - cut, _ROW - 12)
        + _rect("bar-cut", _BARS_X + kept - cut, top + 6, cut, _ROW - 12)
        + _text(_BARS_X + kept + 8, middle, text, "faint")
    )


def token_chart(lengths: Sequence[CaptionLength]) -> str:
    """Histogram of caption lengths in tokens; a bar is marked where its captions are cut."""
    bins = [0] * (_LAST_BIN + 1)
    cut = [0] * (_LAST_BIN + 1)
    for length in lengths:
        place = min(length.tokens // _BIN, _LAST_BIN)
        bins[place] += 1
        cut[place] += length.tokens > length.limit
    used = max((number for number, count in enumerate(bins) if count), default=0) + 1
    used = max(used, 20)
    step, most = WIDTH / used, max(bins) or 1
    parts = []
    for number in range(used):
        kept_height, cut_height = (_PLOT_HEIGHT * count / most for count in (bins[number] - cut[number], cut[number]))
        low = number * _BIN
        label = f"{low} to {low + _BIN - 1} tokens" if number < _LAST_BIN else f"{low} tokens and more"
        bars = _rect("bar", number * step, 20 + _PLOT_HEIGHT - kept_height, step - 2, kept_height)
        bars += _rect("bar-bad", number * step, 20 + _PLOT_HEIGHT - kept_height - cut_height, step - 2, cut_height)
        parts.append(
            f"<g><title>{label}: {counted(bins[number], 'caption')}, {cut[number]} of them cut</title>{bars}</g>"
        )
    parts.append(_rect("axis", 0, 20 + _PLOT_HEIGHT, WIDTH, 1))
    every = max(1, used // 10)
    labelled = range(0, used - 1, every)
    parts += [_text(number * step, 34 + _PLOT_HEIGHT, str(number * _BIN), "faint") for number in labelled]
    parts.append(_text(0, 8, f"up to {counted(most, 'caption')} in a bar", "faint"))
    parts += [_limit(limit, step, used) for limit in sorted({length.limit for length in lengths})]
    return _svg(_PLOT_HEIGHT + 46, parts, "Captions by their number of tokens")


def _limit(limit: int, step: float, used: int) -> str:
    # A caption of exactly `limit` tokens is whole, and limits are multiples of a bin.
    place = limit / _BIN * step
    if place > used * step:
        return ""
    return _rect("limit", place - 1, 8, 1.5, _PLOT_HEIGHT + 12) + _text(place + 5, 10, f"limit {limit}", "limit-text")


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    inner = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">{inner}</svg>'


def _rect(kind: str, left: float, top: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2"/>'


def _text(left: float, middle: float, text: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{left:.1f}" y="{middle + 4:.1f}">{escape(text)}</text>'
