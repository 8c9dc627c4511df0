"""Run bench_step.py and bench_torch_peer.py in turn and print the ratio of their step times.

python benchmarks/bench_compare.py --peer_python PEER_VENV/bin/python --rounds 3 --size full --pixels 512 --batch 1 \
    --rank 16 --checkpointing on --keep 1 --steps 3
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measure

HERE = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", required=True, help="Python that has requirements-peer.txt installed")
    parser.add_argument("--rounds", type=int, default=3, help="how often both are run")
    parser.add_argument("--checkpointing", choices=("on", "off"), default="off", help="the peer's; ours is --keep")
    parser.add_argument("--keep", default="1", help="see bench_step.py")
    parser.add_argument("--threads", default="1,2", help="thread counts to try for the peer; the best counts")
    args, common = parser.parse_known_args(argv)
    ours, peers = [], []
    for _ in range(args.rounds):
        ours.append(run(sys.executable, "bench_step.py", [*common, "--keep", args.keep]))
        for threads in args.threads.split(","):
            options = [*common, "--checkpointing", args.checkpointing, "--threads", threads]
            peers.append(run(args.peer_python, "bench_torch_peer.py", options))
    by_threads = {r["threads"]: [p["median_s"] for p in peers if p["threads"] == r["threads"]] for r in peers}
    best = min(by_threads, key=lambda threads: statistics.median(by_threads[threads]))
    our_times = [r["median_s"] for r in ours]
    measure.report(
        {
            "what": "bench_compare",
            "options": " ".join([*common, "--checkpointing", args.checkpointing, "--keep", args.keep]),
            "ours_s": our_times,
            "peer_s": by_threads[best],
            "peer_threads": best,
            "ratio": round(statistics.median(our_times) / statistics.median(by_threads[best]), 3),
            "ours_share_of_matmul": [r["share_of_matmul"] for r in ours],
            "ours_peak_rss_gb": max(r["peak_rss_gb"] for r in ours),
            "peer_peak_rss_gb": max(r["peak_rss_gb"] for r in peers if r["threads"] == best),
        }
    )
    return 0


def run(python: str, script: str, options: list[str]) -> dict:
    """One benchmark in a process of its own; its JSON line."""
    command = [python, str(HERE / script), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    line = done.stdout.strip().splitlines()[-1]
    print(line, flush=True)
    return json.loads(line)


if __name__ == "__main__":
    sys.exit(main())
