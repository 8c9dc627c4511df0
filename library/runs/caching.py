"""Filling the caches of a run: its VAE and text encoders at work before the first step."""

import os
import socket
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import mindspore as ms
import numpy as np
from tqdm import tqdm

from library.data.batch import EncodedText, Posterior
from library.data.bucketed import PlacedImage
from library.data.cache.cache_fill import Filling, fill
from library.data.cache.cache_store import DiskStore, Indexes, Item, MemoryStore, Store
from library.data.cache.latent_cache import LatentCache, LatentEntry, LatentItem, latent_items
from library.data.cache.text_cache import TextCache, TextEncoders, TextItem, text_items
from library.data.dataset import TrainDataset
from library.data.images.image_util import crop_offset
from library.data.loader import ordered_map
from library.data.sample import DrawnSample, SamplePixels, sample_pixels
from library.data.text.tokenizer import token_limit
from library.families.sdxl import forward as sdxl
from library.families.sdxl.checkpoint import SdxlWeights
from library.families.sdxl.family import SdxlModel, build_model
from library.families.sdxl.forward import TextSpec
from library.files.hashes import values_digest
from library.graphs.program import Forward
from library.models.vae import vae_digest
from library.settings.flag_groups import CacheArgs

DTYPE_NAMES: Mapping[ms.Type, str] = {ms.float32: "float32", ms.float16: "float16", ms.bfloat16: "bfloat16"}
TOKEN_EMBEDDING = "text_model.embeddings.token_embedding.weight"

Entry = TypeVar("Entry")
TextEncoding = Callable[[tuple[np.ndarray, ...], np.ndarray | None], EncodedText]
"""Token ids, one [B, chunks, 77] per text encoder, and their weights [B, chunks, 77] if any, to outputs."""


def build_cached_model(
    weights: SdxlWeights, dataset: TrainDataset, cache: CacheArgs, dtype: ms.Type, compiled: bool
) -> SdxlModel:
    """Put the base model on the device and fill the caches asked for; with cached text without its text encoders.

    Raises:
        ValueError: something cannot be read, encoded or written.
    """
    vae = vae_digest(weights.vae) if cache.cache_latents_to_disk else ""
    encoders = describe_text_encoders(weights, dataset, dtype, cache.cache_text_encoder_outputs_to_disk)
    model = build_model(weights, dtype, compiled=compiled)
    if cache.latents:
        cache_latents(dataset, cache, vae, lambda images: model.vae.encode(images, cache.vae_batch_size))
    if not cache.text:
        return model
    cache_text(dataset, cache, encoders, text_encoding(model.spec, model.run))
    return model.without_text_encoders()


def cache_latents(dataset: TrainDataset, cache: CacheArgs, vae: str, encode: Callable[[np.ndarray], Posterior]) -> None:
    """Make the latents that are missing, and let the data set hand out latents from now on.

    Args:
        dataset: its images are encoded.
        cache: where to, and how many at once.
        vae: digest of the VAE; any text where the cache is in memory.
        encode: images [B, 3, H, W] in [-1, 1] to latents.
    """
    images = dataset.images
    indexes = _indexes(images)
    digests = None
    if cache.cache_latents_to_disk:
        paths = list(dict.fromkeys(image.path for image in images))
        found = ordered_map(lambda path: indexes.of(path.parent).image_digest(path), paths, indexes.workers)
        digests = dict(zip(paths, found, strict=True))
    items = latent_items(images, vae, digests)
    store: Store[LatentItem, LatentEntry] = MemoryStore()
    if cache.cache_latents_to_disk:
        store = DiskStore(indexes, trusting=cache.skip_cache_check)

    def encode_batch(loaded: Sequence[tuple[LatentItem, SamplePixels]]) -> list[LatentEntry]:
        plain = _rows(encode(np.stack([sample.image_CHW for _, sample in loaded])))
        mirrored = [np.ascontiguousarray(sample.image_CHW[:, :, ::-1]) for item, sample in loaded if item.flip]
        flipped = iter(_rows(encode(np.stack(mirrored))) if mirrored else ())
        return [
            # A mask in a file of its own is not cached.
            LatentEntry(one, next(flipped) if item.flip else None, sample.mask_HW if item.alpha_mask else None)
            for one, (item, sample) in zip(plain, loaded, strict=True)
        ]

    def group(item: LatentItem) -> tuple[int, int]:
        return item.image.placement.bucket

    filling = Filling("latents", _pixels, encode_batch, group, cache.vae_batch_size, indexes.workers, _place_to_begin())
    _fill(list(items.values()), store, filling)
    dataset.latent_cache = LatentCache(items, store)


def cache_text(
    dataset: TrainDataset,
    cache: CacheArgs,
    encoders: TextEncoders,
    encode: TextEncoding,
) -> None:
    """Make the text encoders' outputs that are missing, and let the data set hand them out from now on.

    Args:
        dataset: its captions are encoded.
        cache: where to.
        encoders: what the outputs depend on.
        encode: the text encoders.
    """
    images = dataset.images
    indexes = _indexes(images)
    on_disk = cache.cache_text_encoder_outputs_to_disk
    items = text_items(images, encoders, on_disk)
    store: Store[TextItem, EncodedText] = MemoryStore()
    if on_disk:
        store = DiskStore(indexes, trusting=cache.skip_cache_check)
    batch_size = max(each.config.batch_size for each in dataset.datasets)
    known: dict[str, EncodedText] = {}

    def encode_batch(captions: Sequence[str]) -> list[EncodedText]:
        new = list(dict.fromkeys(caption for caption in captions if caption not in known))
        if new:
            # Always a whole batch: another size would be compiled anew.
            padded = new + [new[-1]] * (batch_size - len(new))
            outputs = _text_rows(encode(*dataset.tokens(padded, encoders.tokens)))
            known.update(zip(new, outputs, strict=False))
        entries = [known[caption] for caption in captions]
        for caption in known.keys() - set(captions):  # equal captions follow each other
            del known[caption]
        return entries

    unique = sorted(dict.fromkeys(items.values()), key=lambda item: item.caption)
    filling: Filling[TextItem, str, EncodedText] = Filling(
        what="text-encoder outputs",
        load=lambda item: item.caption,
        encode=encode_batch,
        group=lambda item: None,
        batch_size=batch_size,
        workers=0,
        start=_place_to_begin(),
    )
    _fill(unique, store, filling)
    dataset.text_cache = TextCache(items, store)


def describe_text_encoders(
    weights: SdxlWeights, dataset: TrainDataset, dtype: ms.Type, with_digest: bool
) -> TextEncoders:
    """What text outputs depend on; hashing the weights takes seconds and is left out where nothing is kept."""
    parts = {f"{part}.{key}": array for part in ("te1", "te2") for key, array in weights.parts[part].items()}
    widths = (parts[f"te1.{TOKEN_EMBEDDING}"].shape[1], parts[f"te2.{TOKEN_EMBEDDING}"].shape[1])
    tokens = token_limit(dataset.datasets[0].config.max_token_length)
    digest = values_digest(parts) if with_digest else ""
    return TextEncoders(digest, widths, DTYPE_NAMES[dtype], tokens, dataset.weighted_captions)


def text_encoding(spec: TextSpec, run: Forward) -> TextEncoding:
    """Tokens to what a cache holds: float16 where the text encoders compute in it, else float32."""

    def encode(token_ids: tuple[np.ndarray, ...], token_weights_BNT: np.ndarray | None) -> EncodedText:
        outputs = sdxl.encode_text(spec, run, (token_ids[0], token_ids[1]), token_weights_BNT)
        context, pooled = (_half_or_float(tensor) for tensor in (outputs.context_BTD, outputs.pooled_BD))
        batch, width2 = len(context), pooled.shape[-1]
        # kohya keeps the pooled output of the first chunk, the only one that is used.
        first = pooled.reshape(batch, -1, width2)[:, 0]
        return EncodedText(context[..., :-width2], context[..., -width2:], first)

    return encode


def _half_or_float(tensor: ms.Tensor) -> np.ndarray:
    array: np.ndarray = (tensor if tensor.dtype == ms.float16 else tensor.astype(ms.float32)).asnumpy()
    return array


def _pixels(item: LatentItem) -> tuple[LatentItem, SamplePixels]:
    """An image as the model sees it."""
    return item, sample_pixels(item.image, DrawnSample("", False, crop_offset(item.image.placement, None)))


def _rows(posterior: Posterior) -> list[Posterior]:
    return [Posterior(mean, std) for mean, std in zip(posterior.mean, posterior.std, strict=True)]


def _text_rows(text: EncodedText) -> list[EncodedText]:
    return [EncodedText(*row) for row in zip(text.hidden1, text.hidden2, text.pooled, strict=True)]


def _place_to_begin() -> int:
    """A number that is far from that of another process, so that several share the work."""
    return zlib.crc32(f"{socket.gethostname()} {os.getpid()}".encode())


def _indexes(images: Sequence[PlacedImage]) -> Indexes:
    return Indexes((image.path.parent for image in images), os.cpu_count() or 1)


def _fill(items: Sequence[Item], store: Store[Item, Entry], filling: Filling) -> None:
    """Fill with a progress bar."""
    with tqdm(total=len(items), desc=filling.what, smoothing=0) as bar:

        def progress(done: int, total: int) -> None:
            bar.n = len(items) - total + done
            bar.refresh()

        fill(items, store, replace(filling, progress=progress))
