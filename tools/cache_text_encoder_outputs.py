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
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("GLOG_v", "3")  # before MindSpore is imported
    from library.families.sdxl.checkpoint import TextEncodersFile, load_weights
    from library.families.sdxl.family import build_text_encoders
    from library.runs.caching import cache_text, describe_text_encoders, text_encoding
    from tools.cache_options import read_options, run_tool

    def work(args, dataset, device) -> None:  # type: ignore[no-untyped-def]
        model = args.model
        name = model.pretrained_model_name_or_path
        weights = load_weights(name, model.vae, model.te2_projection, file_type=TextEncodersFile)
        encoders = describe_text_encoders(weights, dataset, device.compute_dtype, with_digest=True)
        spec, run = build_text_encoders(weights, device.compute_dtype, args.compute.compiled)
        cache_text(dataset, args.cache, encoders, text_encoding(spec, run))

    cache = CacheArgs(cache_text_encoder_outputs=True, cache_text_encoder_outputs_to_disk=True)
    return run_tool(read_options(argv, "Encode captions and keep the outputs beside the images.", cache), work)


if __name__ == "__main__":
    sys.exit(main())
