"""Whole weights of the tiny SDXL: the loss rises along a weight's gradient as much as the gradient is long."""

import numpy as np
import pytest
from mindspore import Tensor

from library.data.batch import Batch, Posterior
from library.data.run_rng import RunRng
from library.device.profile import CPU, Device
from library.families.base import StepOptions
from library.families.sdxl.family import SdxlFamily
from library.settings.flag_groups import LossArgs
from library.training.diffusion import RandomDraws
from library.training.noise_schedule import make_noise_schedule
from library.training.optimizers.adamw import AdamW
from library.training.optimizers.optimizer import Optimizer
from library.training.step import TrainStep
from library.training.trained import Group, trained_weights
from tools.tiny_source import tiny_base

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("device")]

LAYER = "text_model.encoder.layers.3."
CHOSEN = {
    "a linear layer": ("unet", "time_embed.0.weight"),
    "a convolution": ("unet", "input_blocks.4.0.in_layers.2.weight"),
    "a turned linear layer": ("unet", "middle_block.1.transformer_blocks.1.attn2.to_k.weight"),
    "a norm's weight": ("unet", "output_blocks.3.1.transformer_blocks.0.norm1.weight"),
    "a norm's bias": ("unet", "out.0.bias"),
    "a text encoder's layer": ("te1", f"{LAYER}mlp.fc1.weight"),
    "a text encoder's table": ("te2", "text_model.embeddings.token_embedding.weight"),
}
RISE = 1e-4
"""How much the loss, which is about 1, is made to change each way: a thousand times float32's resolution, and small
beside the curvature (ten times as much is ten percent off for the linear layer of the middle block)."""


def made_up_batch() -> Batch:
    rng = np.random.default_rng(8)
    shape = (2, 4, 8, 8)
    ids = rng.integers(0, 49406, (2, 1, 77))
    ids[..., 0], ids[..., 40:] = 49406, 49407
    return Batch(
        images_BCHW=None,
        latents=Posterior(rng.standard_normal(shape, dtype=np.float32), np.zeros(shape, np.float16)),
        token_ids=(ids, ids),
        token_weights_BNT=None,
        text=None,
        size_ids_B6=np.tile(np.float32([64, 64, 0, 0, 64, 64]), (2, 1)),
        loss_weights_B=np.ones(2, np.float32),
        masks_BHW=None,
        captions=("", ""),
        keys=("a", "b"),
        index=0,
    )


def test_the_loss_rises_along_gradients_as_they_say() -> None:
    """Central differences along each gradient: less is found along a gradient with a wrong direction, more or less
    along one of a wrong length. Tolerance: the curvature's, and sums in float32."""
    family, device = SdxlFamily(), Device(CPU)
    model = family.build(tiny_base(1), device)
    blocks = family.blocks(model.spec, tuple(model.weights))
    wanted = set(CHOSEN.values())
    group = Group("all", 1e-3)
    trained = trained_weights(model.weights, blocks, lambda part, key: (part, key) in wanted, lambda name: group)
    assert {tensor.names[0] for tensor in trained.tensors} == {f"{part}.{key}" for part, key in wanted}
    optimizer = Optimizer(AdamW(), trained.tensors, device)
    step = TrainStep(model.weights, blocks, trained, optimizer, device, max_grad_norm=1.0)
    draws = RandomDraws(RunRng(2), make_noise_schedule(zero_terminal_snr=False), LossArgs(), False)
    inputs = family.step_inputs(model, made_up_batch(), draws, StepOptions(train_text=True))
    gradients = {name: g.copy() for name, g in step.gradients(inputs)[2].items()}
    problems = []
    for what, (part, key) in CHOSEN.items():
        gradient, value = gradients[f"{part}.{key}"], trained.named()[f"{part}.{key}"]
        length = float(np.linalg.norm(gradient.astype(np.float64)))
        first, losses = value.copy(), []
        for sign in (1, -1):
            value[...] = first + np.float32(sign * RISE / length**2) * gradient
            losses.append(step.gradients(inputs)[0])
        value[...] = first
        found = (losses[0] - losses[1]) / 2
        if abs(found - RISE) > 0.005 * RISE:
            problems.append(f"{what}: the loss changes by {found}, its gradient says {RISE}")
    assert problems == []
    assert isinstance(trained.tensors[0].value, Tensor)
