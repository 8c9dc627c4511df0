"""Showing what will be trained, before anything is computed: the plan, the report page, samples as pictures."""

import logging
from collections.abc import Sequence
from pathlib import Path

from library.data.dataset import TrainDataset
from library.data.report.lint import lint
from library.data.report.plan_text import plan_lines
from library.data.report.preview import check_place, first_samples, write_samples
from library.data.report.report_page import write_report
from library.settings.counted import counted
from library.settings.flag_groups import RunArgs

logger = logging.getLogger(__name__)

DEBUG_FOLDER = "debug_dataset"
"""Folder below --output_dir for --debug_dataset."""


def show_data(
    dataset: TrainDataset, length: Sequence[str], total_steps: int, options: RunArgs, output_dir: Path
) -> bool:
    """Log the plan, write what was asked for, and say whether to go on to training.

    Args:
        dataset: the data.
        length: lines on how long the run will be.
        total_steps: optimizer steps of the whole run.
        options: --dry_run, --report, --debug_dataset.
        output_dir: where the folder of --debug_dataset goes.

    Raises:
        ValueError: an image cannot be read any more, a file cannot be written, or --debug_dataset would write among
            the data.
    """
    folder = output_dir / DEBUG_FOLDER
    if options.debug_dataset:
        check_place(folder, dataset)
    plan = dataset.plan()
    logger.info("what will be trained:\n%s", "\n".join((*plan_lines(plan), *length)))
    if options.report:
        write_report(Path(options.report), plan, length, lint(dataset, plan), first_samples(dataset, total_steps))
        logger.info("wrote %s", options.report)
    if options.debug_dataset:
        count = write_samples(first_samples(dataset, total_steps), folder)
        logger.info("--debug_dataset: wrote the first %s to %s; nothing is trained", counted(count, "sample"), folder)
    return not (options.dry_run or options.debug_dataset)
