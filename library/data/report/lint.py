"""What looks like a mistake in a data set: images and captions that a person should look at before training."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.data.bucketed import PlacedImage
from library.data.dataset import TrainDataset
from library.data.loader import ordered_map
from library.data.progress import progress
from library.data.report.image_facts import ImageFacts, image_facts, near_duplicates
from library.data.report.plan import Plan, is_enlarged
from library.data.scan.image_files import list_folder
from library.data.scan.scan import CAPTION_ENDINGS

TINY = 0.25
"""Share of the resolution's pixels below which an image that is not enlarged is worth a look."""

REPLACED = "\N{REPLACEMENT CHARACTER}"

Finding = tuple[str, str]
"""What it is about (the path of an image, or several), and what was seen."""


@dataclass(frozen=True)
class LintGroup:
    """Findings of one kind."""

    title: str
    advice: str
    """What training does with them, and what to do."""
    pictured: bool
    """Whether one has to see the images to judge."""
    findings: tuple[Finding, ...]


def lint(dataset: TrainDataset, plan: Plan) -> list[LintGroup]:
    """All groups that have findings. Every image is read once more, on all cores; raises ValueError naming one that
    cannot be read any more."""
    images = [image for part in dataset.datasets for image in part.images]
    paths = list(dict.fromkeys(image.path for image in images))
    read = ordered_map(image_facts, paths, os.cpu_count() or 1)
    facts = dict(zip(paths, progress(read, len(paths), "looking at images"), strict=True))
    seen = _Inspected(dataset, plan, images, facts)
    return [
        LintGroup(title, advice, rule in _PICTURED, found)
        for title, advice, rule in _RULES
        if (found := tuple(dict.fromkeys(rule(seen))))
    ]


@dataclass(frozen=True)
class _Inspected:
    dataset: TrainDataset
    plan: Plan
    images: Sequence[PlacedImage]
    """Of all data sets; a file may be in several."""
    facts: Mapping[Path, ImageFacts]
    """Of each file once."""


def _rotated(seen: _Inspected) -> Iterator[Finding]:
    for path, facts in seen.facts.items():
        if facts.orientation != 1:
            yield str(path), f"EXIF orientation {facts.orientation}"


def _transparent(seen: _Inspected) -> Iterator[Finding]:
    for path, facts in seen.facts.items():
        if facts.transparent:
            yield str(path), "has transparent pixels"


def _enlarged(seen: _Inspected) -> Iterator[Finding]:
    def factor(image: PlacedImage) -> float:
        return image.placement.resized[0] / image.size[0]

    for image in sorted(filter(is_enlarged, seen.images), key=factor, reverse=True):
        width, height = image.size
        bucket = "{} x {}".format(*image.placement.bucket)
        yield str(image.path), f"{width} x {height} pixels, enlarged {factor(image):.2f} times for its bucket {bucket}"


def _tiny(seen: _Inspected) -> Iterator[Finding]:
    for part in seen.dataset.datasets:
        wanted = "{} x {}".format(*part.config.resolution)
        pixels = part.config.resolution[0] * part.config.resolution[1]
        for image in part.images:
            width, height = image.size
            if not is_enlarged(image) and width * height < TINY * pixels:
                yield str(image.path), f"{width} x {height} pixels, where the data set's resolution is {wanted}"


def _duplicates(seen: _Inspected) -> Iterator[Finding]:
    for group in _same_file(seen.facts):
        yield "\n".join(map(str, group)), f"{len(group)} files with the same bytes"


def _near_duplicates(seen: _Inspected) -> Iterator[Finding]:
    copies = {path for group in _same_file(seen.facts) for path in group[1:]}
    paths = [path for path in seen.facts if path not in copies]
    for group in near_duplicates([seen.facts[path].thumbnail for path in paths]):
        yield "\n".join(str(paths[index]) for index in group), f"{len(group)} images look the same"


def _same_file(facts: Mapping[Path, ImageFacts]) -> list[list[Path]]:
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for path, fact in facts.items():
        groups[fact.digest].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _same_stem(seen: _Inspected) -> Iterator[Finding]:
    groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in seen.facts:
        groups[path.parent, path.stem].append(path)
    for group in groups.values():
        if len(group) > 1:
            yield "\n".join(map(str, group)), "one name before the ending"


def _empty_captions(seen: _Inspected) -> Iterator[Finding]:
    for path in seen.plan.missing_captions:
        yield path, "no caption"


def _cut_captions(seen: _Inspected) -> Iterator[Finding]:
    for cut in sorted(seen.plan.cut_captions, key=lambda length: length.tokens, reverse=True):
        yield cut.path, f"{cut.tokens} tokens, {cut.limit} are read"


def _mojibake(seen: _Inspected) -> Iterator[Finding]:
    from ftfy import fix_encoding

    for image in seen.images:
        caption = image.caption
        if REPLACED in caption:
            yield str(image.path), f"{caption!r} has replacement characters: text was lost when it was saved"
        elif not caption.isascii() and (fixed := fix_encoding(caption)) != caption:
            yield str(image.path), f"{caption!r} was probably meant as {fixed!r}"


def _caption_files(seen: _Inspected) -> Iterator[Finding]:
    """Caption files that are not read, beside one that is or instead of it."""
    for part in seen.dataset.datasets:
        if part.config.kind == "finetuning":
            continue
        for scan in part.scans:
            read = "." + scan.config.caption_extension.removeprefix(".")
            others = [ending for ending in CAPTION_ENDINGS if ending != read]
            names = list_folder(Path(scan.config.image_dir or "")).names
            for image in scan.images:
                for ending in others:
                    if image.path.stem + ending in names:
                        yield str(image.path), _unread(image.path.stem, ending, read, names)


def _unread(stem: str, ending: str, read: str, names: frozenset[str]) -> str:
    beside = f"{stem}{read} is read" if stem + read in names else f"caption_extension is {read}"
    return f"{stem}{ending} is not read, since {beside}"


_RULES: tuple[tuple[str, str, Callable[[_Inspected], Iterable[Finding]]], ...] = (
    ("Unread caption files", "Set caption_extension to the ending of the files that are meant.", _caption_files),
    ("Empty captions", "These images train without any text. Write captions, or set class_tokens.", _empty_captions),
    (
        "Captions that are cut",
        "What is beyond the limit is not trained. Shorten them, or raise --max_token_length (up to 225).",
        _cut_captions,
    ),
    ("Damaged letters in captions", "They were once read in the wrong encoding. Save them again as UTF-8.", _mojibake),
    (
        "Enlarged images",
        "They are trained blurred. Leave them out, or set bucket_no_upscale or a smaller resolution.",
        _enlarged,
    ),
    (
        "Tiny images",
        "They are trained at their own size (bucket_no_upscale) and show little. Leave them out.",
        _tiny,
    ),
    ("Duplicates", "The same file counts several times. Remove copies, and set num_repeats instead.", _duplicates),
    ("Near-duplicates", "They look the same at a glance and pull the result towards them.", _near_duplicates),
    (
        "One name, several images",
        "They share one caption file, and in other trainers one cache file. Rename one of them.",
        _same_stem,
    ),
    ("Rotated by EXIF", "They are trained upright, as viewers show them; other trainers may not.", _rotated),
    (
        "Transparent images",
        "They are put on white, unless alpha_mask is on. Check that white is what you want behind them.",
        _transparent,
    ),
)
"""(title, advice, rule), what matters most first."""

_PICTURED = (_duplicates, _near_duplicates, _same_stem, _rotated, _transparent)
