"""The autoencoder between pictures and latents: mindone's AutoencoderKL, built from a checkpoint's own shapes.

Shapes: B batch, C channels, H W height and width (pixels for images, 1/8 of that for latents of SDXL).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, ops
from mindspore.nn.utils import no_init_parameters

from library.data.batch import Posterior
from library.device.mindone_import import diffusers_class
from library.files.hashes import values_digest
from library.models.vae_keys import VaeSpec, diffusers_vae_key, infer_vae_spec, original_vae_keys
from library.models.vae_strips import use_strips

VAE_SCALE = 0.13025  # SDXL: latents / standard deviation of the training latents, sd_xl_base.yaml scale_factor

_LOGVAR_RANGE = (-30.0, 20.0)
"""The log variance is clamped to this, as in the original's DiagonalGaussianDistribution."""

_SCORES_AT_ONCE = 2**24
"""Attention scores held at a time (64 MB); a 1024 px picture has 2**28 of them."""


class QueryChunkedAttention:
    """mindone attention processor for the VAE's single-head attention that works through the queries in chunks.

    Same result as mindone's own processor; the memory for scores stays constant where that one takes N x N.
    """

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None) -> Tensor:
        """Attention among the pixels of hidden_states [B, C, H, W]; the other arguments are unused by a VAE."""
        batch, channels, height, width = hidden_states.shape
        tokens = height * width
        x_BTC = attn.group_norm(hidden_states.reshape(batch, channels, tokens)).swapaxes(1, 2)
        query = attn.to_q(x_BTC) * channels**-0.5
        key_BCT = attn.to_k(x_BTC).swapaxes(1, 2)
        value = attn.to_v(x_BTC)
        rows = max(1, _SCORES_AT_ONCE // (batch * tokens))
        chunks = [
            ops.bmm(ops.softmax(ops.bmm(query[:, first : first + rows], key_BCT), -1), value)
            for first in range(0, tokens, rows)
        ]
        y_BTC = chunks[0] if len(chunks) == 1 else ops.cat(chunks, 1)
        y_BTC = attn.to_out[0](y_BTC)
        return y_BTC.swapaxes(1, 2).reshape(batch, channels, height, width) + hidden_states


class Vae:
    """Encoder and decoder with their weights; NumPy in and out, float32 throughout."""

    def __init__(self, model, spec: VaeSpec) -> None:
        """Wrap a loaded mindone AutoencoderKL; use ``load_vae`` to make one."""
        self._model = model
        self.spec = spec

    def encode_moments(self, images_BCHW: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log variance [B, C, H / 8, W / 8] of the latents of images in [-1, 1]; not scaled by VAE_SCALE."""
        moments = self._model.encode(_tensor(images_BCHW))[0].asnumpy()
        mean, logvar = np.split(moments, 2, axis=1)
        return mean, np.clip(logvar, *_LOGVAR_RANGE)

    def encode(self, images_BCHW: np.ndarray, at_once: int) -> Posterior:
        """The latents' distribution, `at_once` images at a time."""
        moments = [
            self.encode_moments(images_BCHW[first : first + at_once]) for first in range(0, len(images_BCHW), at_once)
        ]
        mean, logvar = (np.concatenate(parts) for parts in zip(*moments, strict=True))
        return Posterior(mean, np.exp(0.5 * logvar).astype(np.float16))

    def decode(self, latents_BCHW: np.ndarray | Tensor) -> np.ndarray:
        """Images [B, C, 8 H, 8 W], about [-1, 1] and not clipped, of latents that are not scaled.

        One picture at a time, which bounds the memory.
        """
        latents = _tensor(latents_BCHW)
        return np.concatenate([self._model.decode(latents[i : i + 1])[0].asnumpy() for i in range(latents.shape[0])])


def load_vae(weights: Mapping[str, np.ndarray], device: object = None) -> Vae:
    """Build the VAE that the weights describe.

    Args:
        weights: arrays under the original keys (``encoder.down.0.block.0.conv1.weight``), under the same with the
            prefix ``first_stage_model.`` in a whole checkpoint, or under diffusers' keys. Each array is asked for once
            and in turn, a few first layers twice. A float32 array becomes the model's memory, not a copy of it.

    Raises:
        ValueError: not a VAE, or keys that are missing, left over or of a wrong shape, all of them in one message.
    """
    named = _Renamed(weights)
    spec = infer_vae_spec(named)
    with no_init_parameters():
        model = diffusers_class("AutoencoderKL")(**_mindone_config(spec))
    model.set_train(False)
    model.set_attn_processor(QueryChunkedAttention())
    _fill(dict(model.parameters_and_names()), named, len(spec.widths))
    use_strips(model)
    return Vae(model, spec)


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


def _mindone_config(spec: VaeSpec) -> dict[str, Any]:
    stages = len(spec.widths)
    return {
        "in_channels": spec.image_channels,
        "out_channels": spec.image_channels,
        "latent_channels": spec.latent_channels,
        "block_out_channels": spec.widths,
        "layers_per_block": spec.res_blocks,
        "down_block_types": ("DownEncoderBlock2D",) * stages,
        "up_block_types": ("UpDecoderBlock2D",) * stages,
    }


def _fill(parameters: dict[str, Parameter], weights: Mapping[str, np.ndarray], stages: int) -> None:
    """Move the weights into mindone's parameters; a 1 x 1 convolution may go into a linear layer and back."""
    originals = {key: name for name, key in original_vae_keys(parameters).items()}
    unknown, misshapen = [], []
    for name in weights:
        parameter = parameters.pop(diffusers_vae_key(name, stages), None)
        if parameter is None:
            unknown.append(name)
            continue
        array = weights[name]
        if _squeezed(array.shape) != _squeezed(parameter.shape):
            misshapen.append(f"{name} is {list(array.shape)}, expected {list(parameter.shape)}")
            continue
        parameter.set_data(_tensor(array.reshape(parameter.shape)))
    missing = sorted(originals[key] for key in parameters)
    problems = (("missing", missing), ("not known", unknown), ("of another shape", misshapen))
    lines = [f"{len(names)} {what}: {', '.join(names)}" for what, names in problems if names]
    if lines:
        raise ValueError("the VAE's weights do not fit its layout: " + "; ".join(lines))


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a linear layer for a 1 x 1 convolution, any other shape as it is."""
    return tuple(shape[:2]) if len(shape) == 4 and shape[2] == shape[3] == 1 else tuple(shape)


def _tensor(array: np.ndarray | Tensor) -> Tensor:
    if isinstance(array, Tensor):
        return array
    return Tensor.from_numpy(np.ascontiguousarray(array, np.float32))
