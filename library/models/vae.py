"""The autoencoder between pictures and latents, built from a checkpoint's own shapes.

Latents come and go as the VAE has them: a model family's scale factor is none of its business. Shapes: B batch, C
channels, H W height and width (pixels for images, 1/8 of that for latents of Stable Diffusion).
"""

from collections.abc import Iterator, Mapping, Sequence

import mindspore as ms
import numpy as np

from library.data.batch import Posterior
from library.device.cores import settled
from library.device.profile import Device
from library.files.hashes import values_digest
from library.graphs.program import Forward, bind
from library.models.strips import GroupNorm
from library.models.vae_forward import VaeForward
from library.models.vae_keys import Shape, VaeSpec, infer_vae_spec, original_vae_keys
from library.models.vae_layout import GROUPS, NORM_EPS, PART, vae_layout, vae_shapes
from library.models.weights import to_tensors

_LOGVAR_RANGE = (-30.0, 20.0)
"""The log variance is clamped to this, as in the original's DiagonalGaussianDistribution."""


class Vae:
    """Encoder and decoder with their weights; NumPy in and out."""

    def __init__(self, spec: VaeSpec, forward: VaeForward, device: Device) -> None:
        """Use ``load_vae`` to make one."""
        self.spec = spec
        self._forward, self._device = forward, device

    def encode_moments(self, images_BCHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log variance [B, C, H / 8, W / 8] of the latents of images in [-1, 1]; float32, not scaled.

        Raises:
            ValueError: height or width is not a multiple of 8 pixels (of the VAE's ``downscale``).
        """
        height, width = images_BCHW.shape[2:]
        if height % self.spec.downscale or width % self.spec.downscale:
            raise ValueError(
                f"images for the VAE are {width} x {height} pixels: give multiples of {self.spec.downscale}"
            )
        with settled(self._device.profile):
            mean, logvar = np.split(self._forward.encode(images_BCHW), 2, axis=1)
        return mean, np.clip(logvar, *_LOGVAR_RANGE)

    def encode(self, images_BCHW: np.ndarray, at_once: int) -> Posterior:
        """The latents' distribution, `at_once` images at a time."""
        moments = [
            self.encode_moments(images_BCHW[first : first + at_once]) for first in range(0, len(images_BCHW), at_once)
        ]
        mean, logvar = (np.concatenate(parts) for parts in zip(*moments, strict=True))
        return Posterior(mean, np.exp(0.5 * logvar).astype(np.float16))

    def decode(self, latents_BCHW: np.ndarray) -> np.ndarray:
        """Images [B, C, 8 H, 8 W], float32, about [-1, 1] and not clipped, of latents that are not scaled.

        One picture at a time, which bounds the memory.
        """
        with settled(self._device.profile):
            images = [self._forward.decode(latents_BCHW[i : i + 1]) for i in range(len(latents_BCHW))]
        return np.concatenate(images)


def load_vae(weights: Mapping[str, np.ndarray], device: Device, dtype: ms.Type = ms.float32) -> Vae:
    """Build the VAE that the weights describe.

    Args:
        weights: arrays under the original keys (``encoder.down.0.block.0.conv1.weight``), under the same with the
            prefix ``first_stage_model.`` in a whole checkpoint, or under diffusers' keys. Each array is asked for once
            and in turn, a few first layers twice. A float32 array becomes the model's memory, not a copy of it.
        device: where it computes.
        dtype: type of the convolutions' weights and of the activations; statistics of norms are float32 in any case.

    Raises:
        ValueError: not a VAE, or keys that are missing, left over or of a wrong shape, all of them in one message.
    """
    named = _Renamed(weights)
    spec = infer_vae_spec(named)
    arrays = _checked(named, vae_shapes(spec))
    norms = {
        name: GroupNorm(arrays.pop(name + ".weight"), arrays.pop(name + ".bias"), GROUPS, NORM_EPS)
        for name in _norm_names(arrays)
    }
    tensors = {PART: to_tensors(arrays, dtype)}
    layout = vae_layout(spec)
    run = Forward({block: bind(block, tensors, device) for block in layout.blocks()})
    profile = device.profile
    forward = VaeForward(layout, run, norms, dtype, profile.max_activation, profile.max_scores)
    return Vae(spec, forward, device)


def vae_digest(weights: Mapping[str, np.ndarray]) -> str:
    """A digest of a VAE's values, the same in each of the namings that ``load_vae`` takes."""
    return values_digest(_Renamed(weights))


class _Renamed(Mapping[str, np.ndarray]):
    """The weights under their original names, asked for one at a time."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self._weights = weights
        self._keys = original_vae_keys(weights)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._weights[self._keys[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _checked(weights: Mapping[str, np.ndarray], shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """The weights in float32 and in the layout's shapes; a linear layer may stand for a 1 x 1 convolution."""
    arrays: dict[str, np.ndarray] = {}
    unknown, misshapen = [], []
    for name in weights:
        if name not in shapes:
            unknown.append(name)
            continue
        array, shape = weights[name], shapes[name]
        if _squeezed(array.shape) != _squeezed(shape):
            misshapen.append(f"{name} is {list(array.shape)}, expected {list(shape)}")
        else:
            arrays[name] = np.ascontiguousarray(array, np.float32).reshape(shape)
    missing = sorted(name for name in shapes if name not in weights)
    problems = (("missing", missing), ("not known", unknown), ("of another shape", misshapen))
    lines = [f"{len(names)} {what}: {', '.join(names)}" for what, names in problems if names]
    if lines:
        raise ValueError("the VAE's weights do not fit its layout: " + "; ".join(lines))
    return arrays


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a linear layer for a 1 x 1 convolution, any other shape as it is."""
    return tuple(shape[:2]) if len(shape) == 4 and shape[2] == shape[3] == 1 else tuple(shape)


def _norm_names(names: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the group normalisations."""
    parents = (name.removesuffix(".weight") for name in names if name.endswith(".weight"))
    return [parent for parent in parents if parent.rpartition(".")[2].startswith("norm")]
