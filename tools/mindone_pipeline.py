"""mindone's StableDiffusionXLPipeline from an SDXL base model in any layout that this project reads, without a network.

The weights come from this project's reader; everything that is computed with them is mindone's. A LoRA that looks the
same here as in our own pictures is read by others as it was meant.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from mindspore import Tensor
from transformers import CLIPTextConfig
from transformers.models.clip.tokenization_clip import CLIPTokenizer, bytes_to_unicode

from library.data.text.clip_bpe import BOS, EOS, SPECIAL, read_merges
from library.families.base import BaseWeights
from library.families.sdxl.keys import diffusers_names
from library.models.vae_keys import diffusers_vae_key, infer_vae_spec, original_vae_keys
from library.training.noise_schedule import BETA_END, BETA_START
from tools.mindone_on_cpu import diffusers_class, transformers_class

HEAD_WIDTH = 64
TRANSFORMER_DEPTH = (1, 2, 10)  # SDXL's; the first resolution has none
VAE_SCALE = 0.13025
_LEAVES = MappingProxyType({"embedding_table": "weight", "gamma": "weight", "beta": "bias"})

Weights = Mapping[str, np.ndarray]


def sdxl_pipeline(base: BaseWeights) -> Any:
    """The pipeline with its Euler sampler, over the same timesteps as this project's.

    Raises:
        ValueError: mindone is not installed, or its models and the weights differ in keys or shapes.
    """
    te1, te2 = base.parts["te1"], base.parts["te2"]
    te1_width, te2_width = (len(part["text_model.final_layer_norm.weight"]) for part in (te1, te2))
    scheduler = diffusers_class("EulerDiscreteScheduler")(
        beta_start=BETA_START, beta_end=BETA_END, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )
    return diffusers_class("StableDiffusionXLPipeline")(
        vae=_vae(base.vae),
        text_encoder=filled(text_encoder("CLIPTextModel", te1_width, _layers(te1), "quick_gelu"), te1),
        text_encoder_2=filled(text_encoder("CLIPTextModelWithProjection", te2_width, _layers(te2), "gelu"), te2),
        tokenizer=_tokenizer("<|endoftext|>"),
        tokenizer_2=_tokenizer("!"),  # id 0
        unet=_unet_of(base.parts["unet"], te1_width, te2_width),
        scheduler=scheduler,
        force_zeros_for_empty_prompt=False,  # as in this project and the original, an empty prompt is encoded
        add_watermarker=False,
    )


def unet(model_channels: int, context_width: int, label_width: int) -> Any:
    """mindone's UNet in SDXL's layout."""
    widths = tuple(model_channels * mult for mult in (1, 2, 4))
    return diffusers_class("UNet2DConditionModel")(
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=TRANSFORMER_DEPTH,
        attention_head_dim=tuple(max(1, width // HEAD_WIDTH) for width in widths),  # how many heads, in fact
        cross_attention_dim=context_width,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=label_width,
        use_linear_projection=True,
    )


def text_encoder(class_name: str, width: int, layers: int, activation: str) -> Any:
    """mindone's CLIP text model."""
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // HEAD_WIDTH),
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return transformers_class(class_name)(config)


def filled(model: Any, weights: Weights, optional: str = "position_ids") -> Any:
    """The model with these weights, which are named as its parameters; a 1 x 1 convolution may fill a linear layer.

    Raises:
        ValueError: names or shapes differ.
    """
    parameters = {_as_in_files(name): parameter for name, parameter in model.parameters_and_names()}
    differ = {name for name in parameters.keys() ^ weights.keys() if not name.endswith(optional)}
    differ |= {name for name in parameters.keys() & weights.keys() if parameters[name].size != weights[name].size}
    if differ:
        raise ValueError(f"mindone's {type(model).__name__} does not fit the weights: {', '.join(sorted(differ)[:8])}")
    for name, array in weights.items():
        parameters[name].set_data(Tensor.from_numpy(np.array(array, np.float32).reshape(parameters[name].shape)))
    model.set_train(False)
    return model


def _as_in_files(name: str) -> str:
    """A parameter's name with the last word that weight files have, for layers of MindSpore's ``nn``."""
    layer, _, leaf = name.rpartition(".")
    return f"{layer}.{_LEAVES.get(leaf, leaf)}"


def _unet_of(weights: Weights, te1_width: int, te2_width: int) -> Any:
    channels, label_width = len(weights["input_blocks.0.0.weight"]), weights["label_emb.0.0.weight"].shape[1]
    names = diffusers_names("unet", weights)
    model = unet(channels, te1_width + te2_width, label_width)
    return filled(model, {names[key]: array for key, array in weights.items()})


def _vae(weights: Weights) -> Any:
    named = {name: weights[key] for name, key in original_vae_keys(weights).items()}
    spec = infer_vae_spec(named)
    stages = len(spec.widths)
    model = diffusers_class("AutoencoderKL")(
        block_out_channels=spec.widths,
        layers_per_block=spec.res_blocks,
        latent_channels=spec.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        scaling_factor=VAE_SCALE,
        force_upcast=False,
    )
    return filled(model, {diffusers_vae_key(name, stages): array for name, array in named.items()})


def _layers(weights: Iterable[str]) -> int:
    return 1 + max(int(key.split(".")[3]) for key in weights if key.startswith("text_model.encoder.layers."))


def _tokenizer(pad_token: str) -> CLIPTokenizer:
    """transformers' tokenizer with the vocabulary of the package openai-clip."""
    merges, symbols = read_merges(), list(bytes_to_unicode().values())
    words = [
        *symbols,
        *(f"{symbol}</w>" for symbol in symbols),
        *(merge.replace(" ", "") for merge in merges),
        *SPECIAL,
    ]
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab_file.write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
        merges_file.write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
        return CLIPTokenizer(str(vocab_file), str(merges_file), pad_token=pad_token, model_max_length=77)
