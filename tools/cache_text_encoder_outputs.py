"""Encode a data set's captions once and keep the outputs, for training with --cache_text_encoder_outputs_to_disk.

python tools/cache_text_encoder_outputs.py --pretrained_model_name_or_path sdxl.safetensors --dataset_config data.toml

Only the text encoders are loaded. An interrupted run goes on where it stopped; several may fill one data set at once.
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
    from library.families.sdxl.checkpoint import TextEncodersFile
    from library.families.sdxl.family import SdxlFamily
    from library.runs.caching import cache_text, describe_text_encoders, text_encoding
    from tools.cache_options import read_options, run_tool

    def work(args, dataset, device) -> None:  # type: ignore[no-untyped-def]
        model = args.model
        family = SdxlFamily(model.te2_projection)
        weights = family.load(model.pretrained_model_name_or_path, model.vae, TextEncodersFile)
        encoders = describe_text_encoders(family, weights, dataset, device, with_digest=True)
        text_model = family.build_text_encoders(weights, device)
        cache_text(dataset, args.cache, encoders, text_encoding(family, text_model))

    cache = CacheArgs(cache_text_encoder_outputs=True, cache_text_encoder_outputs_to_disk=True)
    return run_tool(read_options(argv, "Encode captions and keep the outputs beside the images.", cache), work)


if __name__ == "__main__":
    sys.exit(main())
