"""Weighted captions: factors on the hidden states of both text encoders, as the reference applies them."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor

from library.families.base import StepOptions
from library.families.sdxl.forward import encode_text, joined_weights
from library.families.sdxl.tokenizers import sdxl_tokenizers
from library.graphs.program import Forward
from library.runs.loop import Position
from library.training.block_tape import BlockTape
from library.training.trained import TrainedTensor
from tests.parity.made_up_run import ARGV, SINGLE_OPERATIONS, first_inputs, ready
from tools.replay_base import base_model

TOLERANCE = 1e-6
"""Relative: one float32 product more."""
TEXT_ONLY = ARGV.replace("--network_train_unet_only", "--network_train_text_encoder_only")
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
    model = base_model(1, "correct", SINGLE_OPERATIONS).model
    pairs = [[tokenizer.ids_and_weights(text, limit) for text in (CAPTION, "plain")] for tokenizer in sdxl_tokenizers()]
    ids = tuple(np.stack([ids for ids, _ in each]) for each in pairs)
    weights_BNT = np.stack([weights for _, weights in pairs[0]])
    np.testing.assert_array_equal(weights_BNT, np.stack([weights for _, weights in pairs[1]]))
    plain = encode_text(model.spec, model.forward, ids)
    weighted = encode_text(model.spec, model.forward, ids, weights_BNT)
    expected = chunk_by_chunk(plain.context_BTD.asnumpy(), weights_BNT)
    np.testing.assert_allclose(weighted.context_BTD.asnumpy(), expected, rtol=TOLERANCE, atol=1e-7)
    assert np.abs(expected[0] - plain.context_BTD.asnumpy()[0]).max() > 0.1
    np.testing.assert_array_equal(weighted.pooled_BD.asnumpy(), plain.pooled_BD.asnumpy())


def test_joined_weights_have_the_context_layout() -> None:
    weights_BNT = np.arange(2 * 3 * 77, dtype=np.float32).reshape(2, 3, 77)
    found = joined_weights(weights_BNT)
    np.testing.assert_array_equal(found[..., 0], chunk_by_chunk(np.ones((2, 227, 1), np.float32), weights_BNT)[..., 0])


def test_gradients_go_through_the_weights() -> None:
    """Against the change of a fixed sum of the context along the gradient; weights of 1 change nothing."""
    replay = ready(SINGLE_OPERATIONS, TEXT_ONLY, steps=1)
    model = replay.training.model
    ids = next(replay.training.batches(Position())).token_ids
    bound = replay.trained.bind(model.weights, model.forward.bound, model.device)
    ones, weights = np.ones((2, 1, 77), np.float32), np.ones((2, 1, 77), np.float32)
    weights[:, :, 1:40] = np.random.default_rng(0).uniform(0, 3, (2, 1, 39))
    shape = encode_text(model.spec, Forward(bound), ids).context_BTD.shape
    d_context = np.random.default_rng(1).standard_normal(shape).astype(np.float32)

    def gradient(weights_BNT: np.ndarray | None) -> dict[TrainedTensor, np.ndarray]:
        found: dict[TrainedTensor, np.ndarray] = {}
        tape = BlockTape(bound)
        encode_text(model.spec, tape, ids, weights_BNT)
        tape.backward(Tensor(d_context), lambda tensor, d: found.update({tensor: d.asnumpy()}))
        return found

    def loss(weights_BNT: np.ndarray) -> float:
        context = encode_text(model.spec, Forward(bound), ids, weights_BNT).context_BTD.asnumpy()
        return float((context.astype(np.float64) * d_context).sum())

    plain, same, grad = (gradient(which) for which in (None, ones, weights))
    *_, last_layer = replay.trained.blocks.values()  # it gives the pooled output only
    assert set(replay.trained.tensors) - set(grad) == set(last_layer.tensors)
    assert all(np.array_equal(same[tensor], d) for tensor, d in plain.items())
    assert norm([grad[tensor] - d for tensor, d in plain.items()]) > 0.1 * norm(plain.values())
    losses = []
    stride = 0.02 / norm(grad.values())  # far enough for float32 sums, near enough to be straight
    first = {tensor: tensor.array.copy() for tensor in grad}
    for sign in (1, -1):
        for tensor, d in grad.items():
            tensor.array[...] = first[tensor] + np.float32(sign * stride) * d
        losses.append(loss(weights))
    slope = (losses[0] - losses[1]) / (2 * stride)
    assert abs(slope / norm(grad.values()) ** 2 - 1) < 0.05, (slope, norm(grad.values()) ** 2)


def norm(arrays: Iterable[np.ndarray]) -> float:
    return float(np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in arrays)))


@pytest.mark.slow
def test_a_step_weighs_its_captions_whether_text_is_trained_or_not() -> None:
    weights = np.ones((2, 1, 77), np.float32)
    weights[:, :, 1:40] = np.random.default_rng(0).uniform(0, 3, (2, 1, 39))
    replay = ready(SINGLE_OPERATIONS, steps=1)
    training = replay.training
    predictions = {}
    for train_text, weights_BNT in ((False, None), (False, weights), (True, weights)):
        training = replace(training, step_options=StepOptions(train_text))
        inputs = first_inputs(replace(replay, training=training), token_weights_BNT=weights_BNT)
        predictions[train_text, weights_BNT is None] = inputs.predict(training.model.forward).asnumpy()
    plain, frozen, trained = (predictions[key] for key in ((False, True), (False, False), (True, False)))
    np.testing.assert_array_equal(frozen, trained)
    assert np.linalg.norm(frozen - plain) > 1e-3 * np.linalg.norm(plain)
