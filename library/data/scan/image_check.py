"""Are all images and masks of the scans whole? What is broken stops the run, or is left out when that is asked for."""

from collections.abc import Sequence
from pathlib import Path

from library.data.buckets import Size
from library.data.scan.image_files import check_images
from library.data.scan.masks import mask_size_problem
from library.data.scan.scan import CaptionedImage, Findings, SubsetScan
from library.settings.counted import counted


def check_scans(
    scans: Sequence[SubsetScan], findings: Findings, *, skip_bad_images: bool
) -> tuple[dict[Path, Size], list[Path]]:
    """Decode the images and masks of all scans once.

    Returns the upright sizes, and the images that were left out. With `skip_bad_images` an image that is broken, or
    whose mask is, is taken out of its scan and noted; without, it is a problem. A mask of another shape than its image
    is always one.
    """
    bad: dict[Path, str] = {}
    files = (path for scan in scans for image in scan.images for path in (image.path, image.mask) if path)
    sizes = check_images(files, bad, findings.notes)
    if not skip_bad_images:
        findings.problems += bad.values()
    elif bad:
        findings.notes.append(
            f"--skip_bad_images: {counted(len(bad), 'file')} cannot be read; what they belong to is not trained"
        )
        findings.notes += bad.values()
    skipped = _take_out(scans, bad, findings) if skip_bad_images else []
    images = {image.path: image for scan in scans for image in scan.images}
    findings.problems += [problem for image in images.values() if (problem := _mask_problem(image, sizes))]
    return sizes, skipped


def _take_out(scans: Sequence[SubsetScan], bad: dict[Path, str], findings: Findings) -> list[Path]:
    skipped: dict[Path, None] = {}
    for scan in scans:
        whole = [image for image in scan.images if image.path not in bad and image.mask not in bad]
        if scan.images and not whole:
            findings.problems.append(f"{scan.config.source}: none of its images can be read")
        skipped |= dict.fromkeys(image.path for image in scan.images if image.path in bad or image.mask in bad)
        scan.images[:] = whole
    return list(skipped)


def _mask_problem(image: CaptionedImage, sizes: dict[Path, Size]) -> str | None:
    if image.mask not in sizes or image.path not in sizes:
        return None
    problem = mask_size_problem(sizes[image.path], sizes[image.mask])
    return f"{image.mask}: {problem}" if problem else None
