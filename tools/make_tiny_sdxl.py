"""Make an SDXL checkpoint with weights drawn from a seed: all keys of the real one, small shapes or its own.

python tools/make_tiny_sdxl.py --seed 1 --output tiny_sdxl.safetensors [--dtype float16]
python tools/make_tiny_sdxl.py --seed 1 --output full_sdxl.safetensors --full       (6.9 GB, a few minutes)
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from library.families.sdxl.shapes import FULL_SDXL, TINY_SDXL, SdxlConfig, Shape, checkpoint_shapes
from library.files.safetensors_header import TensorSpec, file_order
from library.files.safetensors_utils import save_stream
from library.files.whole_file import ensure_writable
from library.models.random_weights import tiny_weights

logger = logging.getLogger(__name__)

FORMATS = MappingProxyType({"float32": "F32", "float16": "F16"})


def make_tiny_sdxl(
    output: Path,
    seed: int,
    dtype: str = "float32",
    manifest: Path | None = None,
    config: SdxlConfig = TINY_SDXL,
) -> None:
    """Write the checkpoint, tensor by tensor. The same arguments give the same bytes. Raises ValueError."""
    shapes = checkpoint_shapes(config) if manifest is None else read_manifest(manifest)
    specs = {name: TensorSpec(FORMATS[dtype], shape) for name, shape in shapes.items()}
    size = sum(spec.size for spec in specs.values())
    ensure_writable(output.parent, size)
    in_order = {name: shapes[name] for name in file_order(specs)}
    save_stream(output, specs, tiny_weights(seed, in_order))
    logger.info("%s: %d tensors, %.1f MB", output, len(specs), size / 1e6)


def read_manifest(path: Path) -> dict[str, Shape]:
    """Key -> shape from a JSON file. Raises ValueError when it is something else."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--manifest {path}: cannot be read as JSON: {error}") from error
    if not isinstance(manifest, dict) or not all(_is_shape(shape) for shape in manifest.values()):
        raise ValueError(f'--manifest {path}: it must map keys to shapes, as {{"out.0.weight": [32]}}')
    return {name: tuple(shape) for name, shape in manifest.items()}


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(side) is int and side >= 0 for side in value)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make an SDXL checkpoint with weights drawn from a seed.")
    parser.add_argument("--seed", type=int, required=True, help="seed of the weights, from 0")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--dtype", choices=tuple(FORMATS), help="number format of the file; unset: float32, with --full float16"
    )
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument("--full", action="store_true", help="the shapes of SDXL base 1.0 instead of small ones")
    shapes.add_argument("--manifest", type=Path, help="JSON file of key -> shape, instead of the tiny SDXL's own")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if args.seed < 0:
            raise ValueError(f"--seed {args.seed}: it must be 0 or more")
        config = FULL_SDXL if args.full else TINY_SDXL
        dtype = args.dtype or ("float16" if args.full else "float32")
        make_tiny_sdxl(args.output, args.seed, dtype, args.manifest, config)
    except ValueError as error:
        logger.error("error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
