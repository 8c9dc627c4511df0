"""The training data: from data set settings to batches.

Everything that can be wrong with the files is found when a TrainDataset is made. What is random depends on the seed,
the epoch and the sample, and not on the number of workers or on where a run was resumed.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from library.data.batch import Batch
from library.data.batch_images import cached, decoded
from library.data.bucketed import PlacedImage, build_bucketed
from library.data.cache.latent_cache import LatentCache
from library.data.cache.text_cache import TextCache
from library.data.images.image_util import import_cv2
from library.data.loader import ordered_map
from library.data.report.plan import Plan, make_plan
from library.data.run_rng import RunRng
from library.data.sample import DrawnSample, draw_sample, size_ids
from library.data.scan.image_check import check_scans
from library.data.scan.scan import Findings, epoch_problems, scan_datasets, weight_problems
from library.data.scan.validation import hold_back
from library.data.text.captions import CaptionMoment
from library.data.text.tokenizer import ClipTokenizer
from library.settings.config_util import DatasetConfig
from library.settings.problems import raise_if_any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchRef:
    """Which samples make up a batch."""

    dataset: int
    """Number of the data set, from 0."""
    samples: np.ndarray
    """int64: sample numbers within that data set."""


class TrainDataset:
    """All [[datasets]] of a run, concatenated; their batches are shuffled together.

    `datasets` are trained; `validation` has for each of them the images held back (validation_split), possibly none.
    """

    def __init__(
        self,
        configs: Sequence[DatasetConfig],
        tokenizers: Sequence[ClipTokenizer],
        rng: RunRng,
        *,
        workers: int = 0,
        skip_bad_images: bool = False,
        weighted_captions: bool = False,
    ) -> None:
        """Scan folders and captions, decode every image once to be sure of it, and fill the buckets.

        `tokenizers`: one per text encoder. `workers`: threads that make batches ahead, at most one per core; 0 makes
        them when asked for. `skip_bad_images`: leave broken images out. `weighted_captions`: read weights such as
        `(cat:1.2)` in captions. What is left out on purpose (num_repeats below 1, broken images) is logged.

        Raises ValueError that lists everything wrong: missing or empty folders, broken images, images without the mask
        that they should have, captions that cannot be read, metadata without image. Of an epoch that is too long only
        what was found before images are opened.
        """
        import_cv2()
        findings = Findings()
        scans = scan_datasets(configs, findings)
        every_scan = [scan for subsets in scans for scan in subsets]
        if too_long := epoch_problems(every_scan):
            raise_if_any(findings.problems + too_long, "the training data")
        sizes, self.skipped_images = check_scans(every_scan, findings, skip_bad_images=skip_bad_images)
        if weighted_captions:
            findings.problems += weight_problems(every_scan)
        parts = hold_back(configs, scans, rng.seed, findings)
        self.datasets, self.validation = (
            tuple(
                build_bucketed(config, subsets, sizes, findings) for config, subsets in zip(configs, part, strict=True)
            )
            for part in (parts.training, parts.validation)
        )
        for note in findings.notes:
            logger.warning(note)
        raise_if_any(list(dict.fromkeys(findings.problems)), "the training data")
        self._notes = findings.notes
        self._tokenizers = tuple(tokenizers)
        self._rng = rng
        self.weighted_captions = weighted_captions
        self.workers = min(workers, os.cpu_count() or 1)
        self.latent_cache: LatentCache | None = None
        """Set when it is filled; batches then hold latents instead of images."""
        self.text_cache: TextCache | None = None
        """Set when it is filled; batches then hold what the text encoders give."""

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in one epoch, short ones included."""
        return sum(len(dataset.batch_list()) for dataset in self.datasets)

    @property
    def num_validation_images(self) -> int:
        """Images of all data sets that are held back from training."""
        return sum(len(dataset.images) for dataset in self.validation)

    @property
    def num_train_images(self) -> int:
        """Training images of all data sets, times their repeats."""
        return sum(dataset.num_train_images for dataset in self.datasets)

    @property
    def num_reg_images(self) -> int:
        """Regularisation images of all data sets, times their repeats."""
        return sum(dataset.num_reg_images for dataset in self.datasets)

    @property
    def has_masks(self) -> bool:
        """Whether the loss of any image is weighed by a mask."""
        return any(image.has_mask for dataset in self.datasets for image in dataset.images)

    @property
    def images(self) -> list[PlacedImage]:
        """The images of all data sets, trained and held back."""
        return [image for dataset in (*self.datasets, *self.validation) for image in dataset.images]

    def tokens(
        self, captions: Sequence[str], max_token_length: int | None
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
        """Ids per text encoder, and the weights, which are the same for all of them; as in Batch."""
        if not self.weighted_captions:
            ids = [[tokenizer.ids(caption, max_token_length) for caption in captions] for tokenizer in self._tokenizers]
            return tuple(map(np.stack, ids)), None
        pairs = [
            [tokenizer.ids_and_weights(caption, max_token_length) for caption in captions]
            for tokenizer in self._tokenizers
        ]
        weights = np.stack([weights for _, weights in pairs[0]])
        return tuple(np.stack([ids for ids, _ in each]) for each in pairs), None if (weights == 1).all() else weights

    def plan(self) -> Plan:
        """What will be trained. Counts the tokens of every caption, to find those that are cut."""
        if not self._tokenizers:
            return make_plan(self.datasets, self._notes, None)
        tokenizer = self._tokenizers[0]
        count = tokenizer.count_weighted if self.weighted_captions else tokenizer.count
        return make_plan(self.datasets, self._notes, count)

    def epoch_order(self, epoch: int) -> list[BatchRef]:
        """The batches of an epoch (from 1) in training order.

        Each bucket's samples are shuffled and cut into batches, then all batches of all data sets are shuffled. Every
        epoch is drawn afresh from the seed (unlike the original's, which shuffles the result of the epoch before).
        """
        refs = []
        for number, dataset in enumerate(self.datasets):
            size = dataset.config.batch_size
            shuffled = [
                self._rng.numpy("bucket order", epoch, number, *bucket.resolution).permutation(bucket.samples)
                for bucket in dataset.buckets
            ]
            refs += [BatchRef(number, shuffled[b][k * size : (k + 1) * size]) for b, k in dataset.batch_list()]
        order = self._rng.numpy("batch order", epoch).permutation(len(refs))
        return [refs[position] for position in order]

    def batches(
        self, epoch: int, start_index: int, skip: int = 0, *, max_train_steps: int = 0, batches_per_step: int = 1
    ) -> Iterator[Batch]:
        """The batches of an epoch, from 1 as in the original.

        `start_index`: number in the whole run (from 0) of this epoch's first batch; `skip`: batches to leave out at
        the epoch's start, as when resuming (the first batch then has index start_index + skip). `max_train_steps` and
        `batches_per_step` (gradient accumulation) serve token warmup. Raises ValueError naming an image that cannot
        be read any more.
        """
        assert epoch >= 1, "epochs are counted from 1"
        refs = list(enumerate(self.epoch_order(epoch), start=start_index))[skip:]

        def make(numbered: tuple[int, BatchRef]) -> Batch:
            index, ref = numbered
            try:
                return self._make_batch(ref, index, CaptionMoment(epoch, index // batches_per_step, max_train_steps))
            except Exception as error:  # raised again: whatever goes wrong in a worker is told with its files
                error.add_note(f"while batch {index} was made from {', '.join(self._paths(ref))}")
                raise

        yield from ordered_map(make, refs, self.workers)

    def _paths(self, ref: BatchRef) -> list[str]:
        dataset = self.datasets[ref.dataset]
        return [str(dataset.images[dataset.sample_image[sample]].path) for sample in ref.samples]

    def _make_batch(self, ref: BatchRef, index: int, moment: CaptionMoment) -> Batch:
        dataset = self.datasets[ref.dataset]
        images = [dataset.images[dataset.sample_image[sample]] for sample in ref.samples]
        drawn = [
            draw_sample(image, moment, self._rng, (moment.epoch, ref.dataset, int(sample)))
            for image, sample in zip(images, ref.samples, strict=True)
        ]
        captions = [choice.caption for choice in drawn]
        token_ids, token_weights = self.tokens(captions, dataset.config.max_token_length)
        cache, prior = self.latent_cache, dataset.config.prior_loss_weight
        shown = decoded(images, drawn) if cache is None else cached(cache, images, drawn)
        return Batch(
            images_BCHW=shown.images_BCHW,
            latents=shown.latents,
            masks_BHW=shown.masks_BHW,
            token_ids=token_ids,
            token_weights_BNT=token_weights,
            text=self.text_cache.batch(images, captions) if self.text_cache is not None else None,
            size_ids_B6=_size_ids(images, drawn),
            loss_weights_B=np.array([prior if image.subset.is_reg else 1.0 for image in images], np.float32),
            captions=tuple(captions),
            keys=tuple(str(image.path) for image in images),
            index=index,
        )


def _size_ids(images: Sequence[PlacedImage], drawn: Sequence[DrawnSample]) -> np.ndarray:
    """float32 [B, 6]."""
    rows = [
        size_ids(image.conditioning_size, image.placement.bucket, flipped=choice.flipped)
        for image, choice in zip(images, drawn, strict=True)
    ]
    return np.array(rows, np.float32)
