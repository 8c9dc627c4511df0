"""Time the VAE at full size on random weights, and beside it diffusers' AutoencoderKL on torch's CPU build.

python benchmarks/bench_vae.py --what encode --pixels 1024 --rounds 3 --peer_python PEER_VENV/bin/python

Both live in processes of their own and compute by turns, a picture each, so that what else the machine does meets both.
The peer's environment is that of requirements-peer.txt. Ratios are of medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import measure
from library.families.sdxl.shapes import VAE_PREFIX, checkpoint_shapes
from library.models.random_weights import random_weight

HERE = Path(__file__).resolve()
READY = "ready"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(measure.SIZES), default="full", help="whose SDXL's VAE")
    parser.add_argument("--what", choices=("encode", "decode"), default="encode")
    parser.add_argument("--pixels", type=measure.side, default=1024, help="side of the square image, a multiple of 32")
    parser.add_argument("--rounds", type=int, default=3, help="timed pictures, after the first one")
    parser.add_argument("--threads", type=int, default=2, help="of the peer")
    parser.add_argument("--peer_python", help="Python that has requirements-peer.txt installed")
    parser.add_argument("--serve", choices=("ours", "peer"), help="be one of the two processes")
    args = parser.parse_args(argv)
    if args.serve:
        serve(our_work(args) if args.serve == "ours" else peer_work(args))
        return 0
    pythons = {"ours": sys.executable} | ({"peer": args.peer_python} if args.peer_python else {})
    servers = {name: Server(python, name, args) for name, python in pythons.items()}
    first = {name: server.turn() for name, server in servers.items()}
    rounds = [{name: server.turn() for name, server in servers.items()} for _ in range(args.rounds)]
    figures: dict[str, object] = {"what": "bench_vae", "options": f"{args.what} {args.size} {args.pixels}"}
    medians = {}
    for name in servers:
        seconds = [done[name]["seconds"] for done in rounds]
        medians[name] = statistics.median(seconds)
        figures[name] = {
            **measure.summary(seconds),
            "first_s": round(first[name]["seconds"], 2),
            "cpu_s": round(statistics.median(done[name]["cpu"] for done in rounds), 2),
            "peak_rss_gb": rounds[-1][name]["peak_rss_gb"],
        }
    if args.peer_python:
        figures["ratio"] = round(medians["ours"] / medians["peer"], 3)
    measure.report(figures)
    for server in servers.values():
        server.close()
    return 0


class Server:
    """A process that encodes or decodes one picture whenever it is asked to."""

    def __init__(self, python: str, name: str, args: argparse.Namespace) -> None:
        self._name = name
        options = [f"--{option}={getattr(args, option)}" for option in ("size", "what", "pixels", "threads")]
        self._process = subprocess.Popen(
            [python, str(HERE), "--serve", name, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},  # without it torch's threads spin and hold the cores
        )
        while self._read() != READY:
            pass

    def turn(self) -> dict[str, float]:
        """Have one picture computed; seconds, processor seconds and largest memory so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._read()
        print(f"{self._name:>24}  {line}", flush=True)
        return json.loads(line)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process of the benchmark ended with status {self._process.wait()}")
        return line.strip()


def serve(work: Callable[[], object]) -> None:
    """Do the work for each line that comes in."""
    print(READY, flush=True)
    for _ in sys.stdin:
        cpu = os.times()
        seconds = measure.seconds_of(work, 1)[0]
        done = os.times()
        used = done.user + done.system - cpu.user - cpu.system
        print(json.dumps({"seconds": seconds, "cpu": used, "peak_rss_gb": measure.peak_rss_gb()}), flush=True)


def our_work(args: argparse.Namespace) -> Callable[[], object]:
    """A call that computes one picture by this project's VAE."""
    from library.device.setup import init_device
    from library.models.vae import load_vae

    shapes = checkpoint_shapes(measure.SIZES[args.size]).items()
    weights = {key: random_weight(0, key, shape) for key, shape in shapes if key.startswith(VAE_PREFIX)}
    vae = load_vae(weights, init_device("CPU"))
    image, latents = example(args.pixels)
    return lambda: vae.encode_moments(image) if args.what == "encode" else vae.decode(latents)


def peer_work(args: argparse.Namespace) -> Callable[[], object]:
    """The same by diffusers on torch."""
    import torch
    from diffusers import AutoencoderKL

    torch.set_num_threads(args.threads)
    base = measure.SIZES[args.size].vae_channels
    vae = AutoencoderKL(
        block_out_channels=(base, 2 * base, 4 * base, 4 * base),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    ).eval()
    image, latents = (torch.from_numpy(array) for array in example(args.pixels))

    def work() -> object:
        with torch.inference_mode():
            return vae.encode(image) if args.what == "encode" else vae.decode(latents)

    return work


def example(pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture and latents."""
    generator = np.random.default_rng(0)
    image = generator.uniform(-1, 1, (1, 3, pixels, pixels)).astype(np.float32)
    return image, generator.standard_normal((1, 4, pixels // 8, pixels // 8), np.float32)


if __name__ == "__main__":
    sys.exit(main())
