"""Looking through the folders and files of a data set before training: which images, with which captions.

Whatever is wrong is collected, so that a user sees all of it at once.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from library.data.images.augment import face_in_name, stem_without_face
from library.data.scan.image_files import image_endings, list_folder
from library.data.scan.masks import MaskFolder
from library.data.scan.metadata_file import KeyResolver, MetadataEntry, read_metadata
from library.data.text.captions import join_caption_and_tags, read_caption_file, tag_frequency
from library.data.text.prompt_syntax import parse_prompt_attention
from library.settings.config_util import DatasetConfig, SubsetConfig
from library.settings.counted import counted

CAPTION_ENDINGS = (".txt", ".caption", ".TXT")
"""Endings that caption files usually have."""
MISSING_NAMED = 50
"""Images without a mask that are named; of the rest the number is told."""
MAX_SAMPLES = 10_000_000
"""Samples of one epoch at most; the order of so many takes 3.6 GB and two minutes where batches are of one."""


@dataclass
class Findings:
    """What a user has to know about the data."""

    problems: list[str] = field(default_factory=list)
    """Reasons not to train."""

    notes: list[str] = field(default_factory=list)
    """What was left out or decided, one line each."""


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image file and its caption as written, before anything is drawn."""

    path: Path
    caption: str
    tag_text: str
    """The part of the caption whose tags are counted for the saved file's metadata."""
    mask: Path | None = None
    """The image that weighs its loss, from the subset's conditioning_data_dir."""


@dataclass
class SubsetScan:
    """What was found for one subset."""

    config: SubsetConfig
    images: list[CaptionedImage] = field(default_factory=list)

    @property
    def uncaptioned(self) -> list[Path]:
        """Images without a caption of their own or class_tokens; they train with an empty one."""
        return [image.path for image in self.images if not image.caption]

    @property
    def tags(self) -> dict[str, int]:
        """How often each tag occurs."""
        return tag_frequency(image.tag_text for image in self.images if image.tag_text)


def subset_name(subset: SubsetConfig) -> str:
    """The last part of the subset's metadata file or folder, as it stands in a saved file's metadata."""
    location = subset.metadata_file or subset.image_dir or ""
    return os.path.basename(os.path.normpath(location))


def scan_datasets(configs: Sequence[DatasetConfig], findings: Findings) -> list[list[SubsetScan]]:
    """The images and captions of all data sets; that nothing at all is left to train is a problem."""
    if not configs:
        findings.problems.append("the dataset config has no [[datasets]]")
    scans = [_scan_dataset(config, findings) for config in configs]
    if configs and not any(scans) and not findings.problems:
        findings.problems += ["there is no subset to train", *findings.notes]
        findings.notes.clear()
    return scans


def _scan_dataset(config: DatasetConfig, findings: Findings) -> list[SubsetScan]:
    """The images and captions of all subsets that are trained; pixels are not looked at here.

    A subset that has no images or num_repeats below 1, or whose folder or metadata file an earlier one has, is left
    out with a note.
    """
    findings.notes += config.notes
    scan = _scan_metadata if config.kind == "finetuning" else _scan_folder
    scans: list[SubsetScan] = []
    seen: set[str] = set()
    for subset in config.subsets:
        location = subset.metadata_file if config.kind == "finetuning" else subset.image_dir
        if subset.num_repeats < 1:
            findings.notes.append(
                f"{subset.source}: left out with all images of {location!r}, since num_repeats is {subset.num_repeats}"
            )
        elif (place := os.path.normpath(location or "")) in seen:
            findings.notes.append(f"{subset.source}: left out, since {location!r} is already in this dataset")
        else:
            seen.add(place)
            try:
                found = scan(subset, findings)
                scans += [] if found is None else [_with_masks(found, findings)]
            except ValueError as error:
                findings.problems.append(f"{subset.source}: {error}")
    if not config.subsets:
        findings.notes.append(f"{config.source}: has no [[datasets.subsets]], nothing of it is trained")
    return scans


def _scan_folder(subset: SubsetConfig, findings: Findings) -> SubsetScan | None:
    """Every image of a folder, with the caption file beside it or else class_tokens; None when there are none."""
    assert subset.image_dir is not None, "a DreamBooth subset without image_dir"
    folder = Path(subset.image_dir)
    listing = list_folder(folder)
    if listing.unreadable:
        findings.notes.append(
            f"{subset.source}: {counted(len(listing.unreadable), 'image')} in {str(folder)!r} left out, since only "
            f"{', '.join(image_endings())} are read: {some(listing.unreadable)}"
        )
    if not listing.images:
        findings.notes.append(
            f"{subset.source}: left out, since the folder {str(folder)!r} has no images ({', '.join(image_endings())})"
        )
        return None
    scan = SubsetScan(subset)
    for path in listing.images:
        caption = subset.class_tokens or ""
        caption_path = _caption_file(path, subset.caption_extension, listing.names)
        if caption_path is not None:
            try:
                caption = read_caption_file(caption_path, all_lines=subset.enable_wildcard)
            except (ValueError, OSError) as error:
                findings.problems.append(f"{subset.source}: {error}")
        scan.images.append(CaptionedImage(path, caption, caption))
    _note_other_endings(scan, listing.names, findings)
    return scan


def _caption_file(image: Path, ending: str, names: frozenset[str]) -> Path | None:
    """The caption file among the `names` beside an image; one cut around a face has that of the whole image."""
    ending = "." + ending.removeprefix(".")
    if (own := image.stem + ending) in names:
        return image.with_name(own)
    if face_in_name(image) is not None and (whole := stem_without_face(image) + ending) in names:
        return image.with_name(whole)
    return None


def _note_other_endings(scan: SubsetScan, names: frozenset[str], findings: Findings) -> None:
    """Say so when captions are there, but with the ending that is not asked for."""
    asked = "." + scan.config.caption_extension.removeprefix(".")
    for ending in CAPTION_ENDINGS:
        if ending == asked or not any(name.endswith(ending) for name in names):
            continue
        missed = [image.path.name for image in scan.images if image.path.stem + ending in names]
        missed = [name for name in missed if Path(name).stem + asked not in names]
        if missed:
            findings.notes.append(
                f"{scan.config.source}: {counted(len(missed), 'image has', 'images have')} a {ending} file that is "
                f"not read, since caption_extension is {asked!r}: {some(missed)}"
            )


def _scan_metadata(subset: SubsetConfig, findings: Findings) -> SubsetScan | None:
    """The images that a metadata file names, with its captions and tags; None when it names none."""
    assert subset.metadata_file is not None, "a fine-tuning subset without metadata_file"
    metadata_file = Path(subset.metadata_file)
    image_dir = Path(subset.image_dir) if subset.image_dir else None
    listed = list_folder(image_dir).images if image_dir is not None else []
    entries = read_metadata(metadata_file)
    if not entries:
        findings.notes.append(f"{subset.source}: left out, since {str(metadata_file)!r} names no images")
        return None
    scan = SubsetScan(subset)
    found: dict[Path, MetadataEntry] = {}
    for path, entry in _resolved(entries, KeyResolver(image_dir, metadata_file), subset, findings):
        if path in found:
            findings.problems.append(
                f"{subset.source}: keys {found[path].key!r} and {entry.key!r} name the same image {str(path)!r}"
            )
            continue
        found[path] = entry
        caption = join_caption_and_tags(entry.caption, entry.tags, subset)
        scan.images.append(CaptionedImage(path, caption, entry.tags or ""))
    unnamed = [path.name for path in listed if path not in found]
    if unnamed:
        findings.notes.append(
            f"{subset.source}: {counted(len(unnamed), 'image')} of {str(image_dir)!r} not in {metadata_file.name} and "
            f"not trained: {some(unnamed)}"
        )
    return scan


def _with_masks(scan: SubsetScan, findings: Findings) -> SubsetScan:
    """The scan with the masks of its conditioning_data_dir; images without one are a problem."""
    subset = scan.config
    if subset.conditioning_data_dir is None:
        return scan
    folder = MaskFolder(Path(subset.conditioning_data_dir))
    missing = []
    for number, image in enumerate(scan.images):
        try:
            mask = folder.find(image.path)
        except ValueError as error:
            findings.problems.append(f"{subset.source}: {error}")
            continue
        if mask is None:
            missing.append(image.path.name)
        scan.images[number] = replace(image, mask=mask)
    if missing:
        findings.problems.append(
            f"{subset.source}: {counted(len(missing), 'image has', 'images have')} no mask in "
            f"{subset.conditioning_data_dir!r} (an image of the same name, with any ending): "
            f"{some(missing, MISSING_NAMED)}"
        )
    unused = folder.without_image([image.path for image in scan.images])
    if unused:
        findings.notes.append(
            f"{subset.source}: {counted(len(unused), 'mask')} of {subset.conditioning_data_dir!r} without an image: "
            f"{some(unused)}"
        )
    if subset.alpha_mask:
        findings.notes.append(f"{subset.source}: alpha_mask is not used, since conditioning_data_dir has the masks")
    return scan


def _resolved(
    entries: list[MetadataEntry], resolver: KeyResolver, subset: SubsetConfig, findings: Findings
) -> Iterator[tuple[Path, MetadataEntry]]:
    for entry in entries:
        try:
            yield resolver.find(entry.key), entry
        except ValueError as error:
            findings.problems.append(f"{subset.source}: {subset.metadata_file}: {error}")


def epoch_problems(scans: Sequence[SubsetScan]) -> list[str]:
    """What to do about an epoch of more than MAX_SAMPLES, whose list would not fit into memory."""
    samples = [len(scan.images) * scan.config.num_repeats for scan in scans]
    if sum(samples) <= MAX_SAMPLES:
        return []
    most = scans[samples.index(max(samples))]
    return [
        f"one epoch would have {sum(samples):,} samples, at most {MAX_SAMPLES:,} are possible. Most are of "
        f"{most.config.source}, {counted(len(most.images), 'image')} with num_repeats = {most.config.num_repeats}: "
        "lower it, and train longer with --max_train_epochs"
    ]


def weight_problems(scans: Sequence[SubsetScan]) -> list[str]:
    """Captions in which a weight such as `(cat:1.2)` is not a number."""
    problems = []
    for image in (image for scan in scans for image in scan.images):
        try:
            parse_prompt_attention(image.caption)
        except ValueError as error:
            problems.append(f"{image.path}: {error}")
    return problems


def some(names: list[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
