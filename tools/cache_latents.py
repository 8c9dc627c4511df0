"""Encode a data set's images once and keep their latents beside them, for training with --cache_latents_to_disk.

python tools/cache_latents.py --pretrained_model_name_or_path sdxl.safetensors --dataset_config data.toml

Only the VAE is loaded. An interrupted run goes on where it stopped; several may fill one data set at once.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from library.settings.flag_groups import CacheArgs


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    os.environ.setdefault("GLOG_v", "3")  # before MindSpore is imported
    from library.families.sdxl.checkpoint import load_vae_weights
    from library.families.sdxl.family import SdxlFamily
    from library.models.vae import load_vae, vae_digest
    from library.runs.caching import cache_latents
    from tools.cache_options import read_options, run_tool

    def work(args, dataset, device) -> None:  # type: ignore[no-untyped-def]
        weights = load_vae_weights(args.model.vae or args.model.pretrained_model_name_or_path)
        digest, vae, at_once = vae_digest(weights), load_vae(weights, device), args.cache.vae_batch_size
        cache_latents(SdxlFamily(), dataset, args.cache, digest, lambda images: vae.encode(images, at_once))

    cache = CacheArgs(cache_latents=True, cache_latents_to_disk=True)
    return run_tool(read_options(argv, "Encode images and keep their latents beside them.", cache), work)


if __name__ == "__main__":
    sys.exit(main())
