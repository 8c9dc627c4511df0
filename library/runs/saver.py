"""Saving a network during and after a run: when, under which name, with which metadata, and what goes."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from library.device.mindspore_ckpt import save_ckpt
from library.files.file_dates import file_date
from library.files.file_names import (
    epoch_file_name,
    get_remove_epoch_no,
    get_remove_step_no,
    last_file_name,
    step_file_name,
)
from library.files.hashes import sshs_hashes
from library.files.metadata import minimum_metadata, stamped
from library.files.safetensors_utils import save_file
from library.files.whole_file import ensure_writable
from library.runs.length import Length
from library.runs.loop import Follower, Position
from library.settings.flag_groups import SaveArgs
from library.training.step import StepResult

logger = logging.getLogger(__name__)

FORMATS = {None: "F32", "float": "F32", "fp16": "F16", "bf16": "BF16"}
"""--save_precision -> number format in the file; unset keeps the float32 that adapters are trained in."""
BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class Saver(Follower):
    """Writes the network's files of one run.

    Args:
        options: the save flags.
        state_dict: gives the network's tensors, up to date.
        metadata: gives the texts that stay the same during the run; called at the first save.
        seed_given: whether the run has a seed (then no clock time is written).
        length: of the run.
    """

    def __init__(
        self,
        options: SaveArgs,
        state_dict: Callable[[], Mapping[str, np.ndarray]],
        metadata: Callable[[], Mapping[str, str]],
        seed_given: bool,
        length: Length,
    ) -> None:
        self._options = options
        self._state_dict = state_dict
        self._metadata_of = metadata
        self._metadata: Mapping[str, str] | None = None
        self._seed_given = seed_given
        self._length = length
        self.last: Path | None = None
        """The file written last."""
        self._folder = Path(options.output_dir)
        self._format = FORMATS[options.save_precision]
        ratio = options.save_n_epoch_ratio
        self._every_epochs = max(1, length.total_epochs // ratio) if ratio else options.save_every_n_epochs

    def check_place(self, parameters: int) -> None:
        """Make the folder and see that one file fits, before anything is computed.

        Raises:
            ValueError: the folder cannot be written, or its disk is full.
        """
        ensure_writable(self._folder, 2 * BYTES[self._format] * parameters)

    def after_step(self, position: Position, result: StepResult) -> None:
        """Save every --save_every_n_steps; the last step is the final file's."""
        every = self._options.save_every_n_steps
        if every and position.step % every == 0 and position.step < self._length.total_steps:
            self.save_step(position)
            old = get_remove_step_no(position.step, every, self._options.save_last_n_steps)
            if old is not None:
                self._remove(self._step_name(old))

    def after_epoch(self, position: Position) -> None:
        """Save every --save_every_n_epochs; the last epoch is the final file's."""
        every = self._every_epochs
        if every and position.epoch % every == 0 and position.epoch < self._length.total_epochs:
            self._save(self._epoch_name(position.epoch), position)
            old = get_remove_epoch_no(position.epoch, every, self._options.save_last_n_epochs)
            if old is not None:
                self._remove(self._epoch_name(old))

    def after_run(self, position: Position) -> None:
        """Save the final file."""
        self._save(last_file_name(self._options.output_name, self._options.save_model_as), position)

    def save_step(self, position: Position) -> Path:
        """Save under the name of the step and return the path."""
        return self._save(self._step_name(position.step), position)

    def _step_name(self, step: int) -> str:
        return step_file_name(self._options.output_name, step, self._options.save_model_as)

    def _epoch_name(self, epoch: int) -> str:
        return epoch_file_name(self._options.output_name, epoch, self._options.save_model_as)

    def _save(self, name: str, position: Position) -> Path:
        if self._metadata is None:
            self._metadata = self._metadata_of()
        state = self._state_dict()
        metadata = stamped(self._metadata, position.step, position.epoch, file_date(self._seed_given))
        if self._options.no_metadata:
            spec = {key: value for key, value in metadata.items() if key.startswith("modelspec.")}
            metadata = {**minimum_metadata(metadata), **spec}
        metadata |= sshs_hashes(state, metadata, self._format)
        path = self._folder / name
        logger.info("saving %s", path)
        if self._options.save_model_as == "ckpt":
            save_ckpt(state, path, metadata, self._format)
        else:
            save_file(state, path, metadata, self._format)
        self.last = path
        return path

    def _remove(self, name: str) -> None:
        path = self._folder / name
        if path.exists():
            logger.info("removing %s", path)
            path.unlink()
