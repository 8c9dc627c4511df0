"""Weighted captions: factors on the hidden states of both text encoders, as the reference applies them."""

import numpy as np
import pytest
from mindspore import Tensor

from library.data.text.tokenizer import sdxl_tokenizers
from library.families.sdxl.family import SdxlFamily
from library.families.sdxl.forward import encode_text, joined_weights
from library.settings.arguments import read_train_args
from tests.parity.test_modes import ARGV, made_up_run
from tools.replay_base import base_model
from tools.replay_steps import prediction, set_up

TOLERANCE = 1e-6
"""Relative: one float32 product more."""
CAPTION = "a (red:1.5) [cat], ((very)) long " + "story " * 60 + "(end:0.25) of it"

pytestmark = pytest.mark.usefixtures("device")


def chunk_by_chunk(context_BTD: np.ndarray, weights_BNT: np.ndarray) -> np.ndarray:
    """The rule of kohya's SdxlTextEncodingStrategy: the 75 tokens of chunk i start at 75 i + 1 of the context."""
    expected = context_BTD.copy()
    for sample, chunks in enumerate(weights_BNT):
        for number, chunk in enumerate(chunks):
            for token in range(75):
                expected[sample, 75 * number + 1 + token] *= chunk[1 + token]
    return expected


@pytest.mark.parametrize("limit", [None, 225])
def test_weights_multiply_the_hidden_states_and_not_the_pooled_output(limit: int | None) -> None:
    model = base_model(1, "correct", compiled=False).model
    pairs = [[tokenizer.ids_and_weights(text, limit) for text in (CAPTION, "plain")] for tokenizer in sdxl_tokenizers()]
    ids = tuple(np.stack([ids for ids, _ in each]) for each in pairs)
    weights_BNT = np.stack([weights for _, weights in pairs[0]])
    np.testing.assert_array_equal(weights_BNT, np.stack([weights for _, weights in pairs[1]]))
    plain = encode_text(model.spec, model.run, ids)
    weighted = encode_text(model.spec, model.run, ids, weights_BNT)
    expected = chunk_by_chunk(plain.context_BTD.asnumpy(), weights_BNT)
    np.testing.assert_allclose(weighted.context_BTD.asnumpy(), expected, rtol=TOLERANCE, atol=1e-7)
    assert np.abs(expected[0] - plain.context_BTD.asnumpy()[0]).max() > 0.1
    np.testing.assert_array_equal(weighted.pooled_BD.asnumpy(), plain.pooled_BD.asnumpy())


def test_joined_weights_have_the_context_layout() -> None:
    weights_BNT = np.arange(2 * 3 * 77, dtype=np.float32).reshape(2, 3, 77)
    found = joined_weights(weights_BNT)
    np.testing.assert_array_equal(found[..., 0], chunk_by_chunk(np.ones((2, 227, 1), np.float32), weights_BNT)[..., 0])


@pytest.mark.slow
def test_the_gradient_of_the_text_encoders_goes_through_the_weights() -> None:
    """Against the change of the loss along the gradient; weights of 1 change nothing."""
    recording = made_up_run(ARGV.replace("--network_train_unet_only", "--network_train_text_encoder_only"), steps=1)
    replay = set_up(recording, read_train_args(recording.argv, require_paths=False), False)
    step, (_, inputs) = replay.step, prediction(replay, 0)
    ids, sizes = [recording.tensors[f"in.input_ids{n}"][0] for n in (1, 2)], recording.tensors["in.size_ids"][0]

    def loss_and_grad(weights_BNT: np.ndarray | None, theta: np.ndarray) -> tuple[float, np.ndarray]:
        step.thetas = (Tensor(theta),)
        model = replay.base.model
        predict = SdxlFamily().training_prediction(
            model, inputs, ids, sizes, train_text=True, token_weights_BNT=weights_BNT
        )
        loss, _, grad = step.loss_and_grad(predict, Tensor(inputs.target_BCHW), Tensor(inputs.weights_B1HW))
        return float(loss.asnumpy()), grad.asnumpy().astype(np.float64)

    theta = step.thetas[0].asnumpy()
    ones, weights = np.ones((2, 1, 77), np.float32), np.ones((2, 1, 77), np.float32)
    weights[:, :, 1:40] = np.random.default_rng(0).uniform(0, 3, (2, 1, 39))
    plain_loss, plain_grad = loss_and_grad(None, theta)
    same_loss, same_grad = loss_and_grad(ones, theta)
    assert plain_loss == same_loss and np.array_equal(plain_grad, same_grad)
    _, grad = loss_and_grad(weights, theta)
    assert np.linalg.norm(grad - plain_grad) > 0.1 * np.linalg.norm(plain_grad)
    stride = 0.02 / np.linalg.norm(grad)  # far enough for float32 losses, near enough to be straight
    ahead, _ = loss_and_grad(weights, (theta + stride * grad).astype(np.float32))
    behind, _ = loss_and_grad(weights, (theta - stride * grad).astype(np.float32))
    slope = (ahead - behind) / (2 * stride)
    assert abs(slope / (grad @ grad) - 1) < 0.05, (slope, grad @ grad)
