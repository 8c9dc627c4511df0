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

from library.data.batch import Posterior, TextArrays
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
from library.device.profile import Device
from library.families.base import BaseModel, BaseWeights, Family
from library.files.hashes import values_digest
from library.models.vae import vae_digest
from library.settings.flag_groups import CacheArgs

DTYPE_NAMES: Mapping[ms.Type, str] = {ms.float32: "float32", ms.float16: "float16", ms.bfloat16: "bfloat16"}

Entry = TypeVar("Entry")
TextEncoding = Callable[[tuple[np.ndarray, ...], np.ndarray | None], TextArrays]
"""Token ids, one [B, chunks, 77] per text encoder, and their weights [B, chunks, 77] if any, to outputs."""


def build_cached_model(
    family: Family, weights: BaseWeights, dataset: TrainDataset, cache: CacheArgs, device: Device
) -> BaseModel:
    """Put the base model on the device and fill the caches asked for; with cached text without its text encoders.

    Raises:
        ValueError: something cannot be read, encoded or written.
    """
    vae = vae_digest(weights.vae) if cache.cache_latents_to_disk else ""
    with_digest = cache.cache_text_encoder_outputs_to_disk
    encoders = describe_text_encoders(family, weights, dataset, device, with_digest) if cache.text else None
    model = family.build(weights, device)
    if cache.latents:
        encode = model.vae
        assert encode is not None
        cache_latents(family, dataset, cache, vae, lambda images: encode.encode(images, cache.vae_batch_size))
    if encoders is None:
        return model
    cache_text(dataset, cache, encoders, text_encoding(family, model))
    return model.only(family.facts.unet_part)


def cache_latents(
    family: Family,
    dataset: TrainDataset,
    cache: CacheArgs,
    vae: str,
    encode: Callable[[np.ndarray], Posterior],
) -> None:
    """Make the latents that are missing, and let the data set hand out latents from now on.

    Args:
        family: says how the files are called.
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
    items = latent_items(images, vae, digests, family.facts.latents_ending)
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
    store: Store[TextItem, TextArrays] = MemoryStore()
    if on_disk:
        store = DiskStore(indexes, trusting=cache.skip_cache_check)
    batch_size = max(each.config.batch_size for each in dataset.datasets)
    known: dict[str, TextArrays] = {}

    def encode_batch(captions: Sequence[str]) -> list[TextArrays]:
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
    filling: Filling[TextItem, str, TextArrays] = Filling(
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
    family: Family, weights: BaseWeights, dataset: TrainDataset, device: Device, with_digest: bool
) -> TextEncoders:
    """What text outputs depend on; hashing the weights takes seconds and is left out where nothing is kept."""
    text_parts = sorted(set(weights.parts) - {family.facts.unet_part})
    parts = {f"{part}.{key}": array for part in text_parts for key, array in weights.parts[part].items()}
    tokens = token_limit(dataset.datasets[0].config.max_token_length)
    return TextEncoders(
        digest=values_digest(parts) if with_digest else "",
        arrays=family.text_shapes(weights, tokens),
        dtype=DTYPE_NAMES[device.dtype],
        tokens=tokens,
        weighted=dataset.weighted_captions,
        ending=family.facts.text_ending,
    )


def text_encoding(family: Family, model: BaseModel) -> TextEncoding:
    """Tokens to what a cache holds."""

    def encode(token_ids: tuple[np.ndarray, ...], token_weights_BNT: np.ndarray | None) -> TextArrays:
        return family.text_arrays(family.encode_text(model, token_ids, token_weights_BNT))

    return encode


def _pixels(item: LatentItem) -> tuple[LatentItem, SamplePixels]:
    """An image as the model sees it."""
    return item, sample_pixels(item.image, DrawnSample("", False, crop_offset(item.image.placement, None)))


def _rows(posterior: Posterior) -> list[Posterior]:
    return [Posterior(mean, std) for mean, std in zip(posterior.mean, posterior.std, strict=True)]


def _text_rows(text: TextArrays) -> list[TextArrays]:
    count = len(next(iter(text.values())))
    return [{name: array[i] for name, array in text.items()} for i in range(count)]


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
