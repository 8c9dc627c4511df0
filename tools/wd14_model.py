"""An ONNX image tagger: finding its files, and running it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from library.curation.tagger_tags import TaggerTag, read_tag_file
from library.data.images.image_util import resize_image

MODEL_NAMES = ("model.onnx", "model_optimized.onnx")
TAG_NAMES = ("selected_tags.csv", "tag_mapping.json")
DEFAULT_SIDE = 448
"""Pixels, where a model takes images of any size; what these taggers were trained with."""
PROVIDERS = ("CANNExecutionProvider", "CUDAExecutionProvider", "ROCMExecutionProvider", "CPUExecutionProvider")
INSTALL = "pip install -r requirements-tools.txt"


@dataclass(frozen=True)
class ModelFiles:
    """The two files of a tagger."""

    onnx: Path
    tags: Path

    @property
    def gives_logits(self) -> bool:
        """Models with a tag_mapping.json take values in [-1, 1] and give logits; the others 0 to 255, probabilities."""
        return self.tags.suffix == ".json"


def find_model(repo_id: str, model_dir: Path, *, force_download: bool = False) -> ModelFiles:
    """The files of a tagger: in a folder, or of a hub name, fetched into `model_dir` unless they are there.

    A hub name may have a folder behind it (``owner/name/folder``). Raises ValueError saying what is missing where.
    """
    folder = Path(repo_id).expanduser()
    if folder.is_dir():
        return _files_in(folder)
    parts = repo_id.split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"--repo_id {repo_id}: there is no such folder, and it is no hub name like owner/name")
    owner, name, *subfolder = parts
    place = model_dir / f"{owner}_{name}"
    wanted = (MODEL_NAMES[1], TAG_NAMES[1]) if subfolder else (MODEL_NAMES[0], TAG_NAMES[0])
    files = ["/".join((*subfolder, file)) for file in wanted]
    if force_download or not all((place / file).is_file() for file in files):
        _fetch(f"{owner}/{name}", files, place, force_download)
    return ModelFiles(place / files[0], place / files[1])


def _files_in(folder: Path) -> ModelFiles:
    found = [[folder / name for name in names if (folder / name).is_file()] for names in (MODEL_NAMES, TAG_NAMES)]
    if not all(found):
        raise ValueError(
            f"{folder}: a tagger is {' or '.join(MODEL_NAMES)} beside {' or '.join(TAG_NAMES)}; the folder has "
            f"{', '.join(sorted(path.name for path in folder.iterdir())) or 'nothing'}"
        )
    return ModelFiles(found[0][0], found[1][0])


def _fetch(name: str, files: Sequence[str], place: Path, force: bool) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from requests.exceptions import RequestException

    for file in files:
        print(f"fetching {file} of {name}", flush=True)
        try:
            hf_hub_download(name, file, local_dir=place, force_download=force)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RequestException, OSError) as error:
            reason = str(error).rstrip(".")
            raise ValueError(
                f"there is no folder {name} here, and the hub did not give its {file}: {reason}. Check the name, or "
                "put the model's files into a folder and give that as --repo_id; HF_ENDPOINT, HF_HUB_OFFLINE and "
                "HF_TOKEN are obeyed"
            ) from error


class Tagger:
    """A loaded model."""

    def __init__(self, files: ModelFiles) -> None:
        """Raises ValueError: onnxruntime is missing, the model cannot be loaded, or it does not fit its tags."""
        self.tags: list[TaggerTag] = read_tag_file(files.tags)
        self._files = files
        self._session = _session(files.onnx)
        self._input = self._session.get_inputs()[0]
        shape = [size if isinstance(size, int) and size > 0 else None for size in self._input.shape]
        if len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise ValueError(f"{files.onnx}: its input is {self._input.shape}, not a batch of pictures of 3 channels")
        self._channels_first = shape[1] == 3
        self.side: int = (shape[2] if self._channels_first else shape[1]) or DEFAULT_SIDE
        self.batch_size: int | None = shape[0]
        """Pictures at once, where the model is fixed to a number."""

    def prepare(self, image_HWC: np.ndarray) -> np.ndarray:
        """A picture as the model takes it: uint8 RGB to float32 [side, side, 3], BGR, made square with white."""
        height, width = image_HWC.shape[:2]
        longest = max(height, width)
        square = np.full((longest, longest, 3), 255, np.uint8)
        top, left = (longest - height) // 2, (longest - width) // 2
        square[top : top + height, left : left + width] = image_HWC[:, :, ::-1]
        return resize_image(square, (self.side, self.side)).astype(np.float32)

    def probabilities(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [pictures, outputs] in [0, 1]. Raises ValueError when the model has other outputs than tags."""
        batch = np.stack(prepared)
        missing = max(0, (self.batch_size or 0) - len(batch))
        batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.float32)])
        if self._files.gives_logits:
            batch = batch / np.float32(127.5) - np.float32(1)
        if self._channels_first:
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        found: np.ndarray = self._session.run(None, {self._input.name: batch})[0][: len(prepared)]
        self._check(found.shape)
        return 1 / (1 + np.exp(-found)) if self._files.gives_logits else found

    def _check(self, shape: tuple[int, ...]) -> None:
        outputs = 1 + max((tag.output for tag in self.tags), default=-1)
        # a mapping may leave outputs out, a list of tags names them all
        fits = len(shape) == 2 and (shape[1] >= outputs if self._files.gives_logits else shape[1] == outputs)
        if not fits:
            raise ValueError(
                f"{self._files.onnx} gives {list(shape)[1:]} numbers for a picture, but {self._files.tags.name} names "
                f"{outputs} tags: the two files do not belong together"
            )


def _session(path: Path) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise ValueError(f"tagging needs onnxruntime, which cannot be loaded ({error}): {INSTALL}") from error
    available = ort.get_available_providers()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about its own graph rewriting
    try:
        return ort.InferenceSession(str(path), options, providers=[name for name in PROVIDERS if name in available])
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise ValueError(f"{path}: onnxruntime cannot load the model: {error}") from error
