"""The plan as lines of text."""

from collections.abc import Sequence

from library.data.report.plan import BucketPlan, DatasetPlan, Plan
from library.settings.counted import counted

NAMED = 5
"""Files that are named in a line; of the rest the number is told."""


def plan_lines(plan: Plan) -> list[str]:
    """The plan for the console: tables of subsets and buckets, then captions that lack or are cut.

    `plan.notes` were logged when the data set was made and are not repeated.
    """
    lines = [line for dataset in plan.datasets for line in _dataset_lines(dataset)]
    short = sum(bucket.short_batch > 0 for dataset in plan.datasets for bucket in dataset.buckets)
    not_full = f", {short} of them not full" if short else ""
    lines.append(f"{counted(plan.batches_per_epoch, 'batch', 'batches')} per epoch{not_full}")
    if plan.missing_captions:
        lacking = counted(len(plan.missing_captions), "image has", "images have")
        lines.append(f"{lacking} no caption: {_named(plan.missing_captions)}")
    if plan.cut_captions:
        cut = [f"{caption.path} ({caption.tokens} tokens)" for caption in plan.cut_captions]
        limits = " or ".join(str(limit) for limit in sorted({caption.limit for caption in plan.cut_captions}))
        lines.append(
            f"{counted(len(cut), 'caption is', 'captions are')} longer than {limits} tokens, and what is beyond is "
            f"not trained (--max_token_length allows up to 225): {_named(cut)}"
        )
    return lines


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Rows under a header in columns, the first one flush left and the others right."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]


def _dataset_lines(plan: DatasetPlan) -> list[str]:
    width, height = plan.resolution
    buckets = "buckets" if plan.enable_bucket else "no buckets"
    subsets = [
        (
            subset.name + (" (regularisation)" if subset.is_reg else ""),
            subset.images,
            subset.num_repeats,
            subset.samples,
        )
        for subset in plan.subsets
    ]
    return [
        f"{plan.source or 'dataset'}: {width} x {height}, batch size {plan.batch_size}, {buckets}",
        *("  " + line for line in table(("subset", "images", "repeats", "samples"), subsets)),
        *("  " + line for line in table(BUCKET_HEADER, [_bucket_row(bucket) for bucket in plan.buckets])),
    ]


BUCKET_HEADER = ("bucket", "images", "samples", "batches", "last batch", "cut off", "enlarged")


def _bucket_row(bucket: BucketPlan) -> tuple[object, ...]:
    width, height = bucket.resolution
    last = bucket.short_batch or "full"
    share = f"{bucket.crop_share:.1%}"
    return f"{width} x {height}", bucket.images, bucket.samples, bucket.batches, last, share, bucket.enlarged


def _named(names: Sequence[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
