"""Time from the command line to the first training step of sdxl_train_network.py, and where it goes.

Every run is a process of its own. A cold run reads the base model from disk: its pages are dropped from memory first.
Without --model a tiny SDXL is made.

python benchmarks/bench_start.py --jit off --runs 3
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measure
from library.device.large_pages import restart_with_large_pages
from tools import make_demo_data, make_tiny_sdxl

STARTED, FIGURES = "BENCH_STARTED", "BENCH_FIGURES"
"""Environment of the measured process: when it was started, and the file for its figures."""
STEPS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="base model; a tiny one is made without it")
    parser.add_argument("--pixels", type=int, default=128, help="resolution of the pictures that are made")
    parser.add_argument("--rank", type=int, default=4, help="network_dim of the LoRA")
    parser.add_argument("--jit", choices=("on", "off"), default="on", help="compile the blocks")
    parser.add_argument("--runs", type=int, default=3, help="warm runs, after one cold run")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = train_options(args, folder)
        model = Path(options[0].partition("=")[2])
        model_gb = round(model.stat().st_size / 1e9, 3)
        cold = run(options, model, folder, cold=True)
        warm = [run(options, model, folder, cold=False) for _ in range(args.runs)]
    measure.report(
        {
            "what": "bench_start",
            "model_gb": model_gb,
            "options": f"--pixels {args.pixels} --rank {args.rank} --jit {args.jit}",
            "cold": cold,
            **{f"warm {i + 1}": figures for i, figures in enumerate(warm)},
        }
    )
    return 0


def train_options(args: argparse.Namespace, folder: Path) -> list[str]:
    """The training command's options; the base model comes first."""
    model = args.model or folder / "tiny.safetensors"
    if args.model is None:
        make_tiny_sdxl.main(["--seed", "1", "--output", str(model)])
    make_demo_data.main(["--output_dir", str(folder / "data"), "--resolution", str(args.pixels)])
    return [
        f"--pretrained_model_name_or_path={model}",
        f"--dataset_config={folder / 'data' / 'data.toml'}",
        f"--output_dir={folder / 'out'}",
        f"--network_dim={args.rank}",
        f"--max_train_steps={STEPS}",
        f"--jit={args.jit}",
        "--network_module=networks.lora",
        "--network_train_unet_only",
        "--gradient_checkpointing",
        "--seed=1",
    ]


def run(options: list[str], model: Path, folder: Path, cold: bool) -> dict[str, float]:
    """Seconds by phase of one start, from a process of its own."""
    if cold:
        drop_from_memory(model)
    figures = folder / "figures.json"
    environment = {**os.environ, STARTED: str(time.time()), FIGURES: str(figures)}
    done = subprocess.run([sys.executable, __file__, *options], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the training command failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(figures.read_text(encoding="utf-8"))
    return result


def drop_from_memory(path: Path) -> None:
    """Have a file read from disk again."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- the measured process -------------------------------------------------------------------------------------------
def measured(started: float, figures: Path) -> None:
    """Run the training command with clocks around its phases."""
    import sdxl_train_network
    from library.families.sdxl.family import SdxlFamily
    from library.runs import train_network
    from library.training.step import TrainStep

    seconds = {"imports": round(time.time() - started, 2)}
    steps: list[float] = []

    @contextmanager
    def clock(name: str) -> Iterator[None]:
        begin = time.time()
        yield
        seconds[name] = round(seconds.get(name, 0) + time.time() - begin, 2)

    def watch(owner: Any, attribute: str, name: str) -> None:
        inner: Callable[..., Any] = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with clock(name):
                return inner(*args, **kwargs)

        setattr(owner, attribute, timed)

    def step_done(inner: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            steps.append(time.time())
            return result

        return timed

    watch(train_network, "make_plan", "data set")
    watch(train_network, "show", "plan and memory estimate")
    watch(train_network, "prepare", "preparation")
    watch(SdxlFamily, "load", "of it base model read")
    watch(SdxlFamily, "build", "of it base model bound")
    TrainStep.__call__ = step_done(TrainStep.__call__)  # type: ignore[method-assign]
    sdxl_train_network.main()
    seconds["to the first step"] = round(steps[0] - started, 2)
    seconds["second step"] = round(steps[1] - steps[0], 2)
    seconds["third step"] = round(steps[2] - steps[1], 2)
    figures.write_text(json.dumps(seconds), encoding="utf-8")


if __name__ == "__main__":
    if STARTED in os.environ:
        restart_with_large_pages()
        measured(float(os.environ.pop(STARTED)), Path(os.environ.pop(FIGURES)))
    else:
        sys.exit(main())
