"""Replay recordings of the reference with this project's code, and say how far they agree.

python tools/replay.py steps/unet_only_adamw.safetensors models.safetensors tokens.json kohya_tables.json
python tools/replay.py --models models.safetensors --lora lora.safetensors lora_effect.safetensors
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from library.files.safetensors_utils import SafetensorsFile
from library.files.whole_file import ensure_writable, write_whole_bytes
from library.settings.flag_groups import ComputeArgs
from tools.replay_result import Finding

JIT = MappingProxyType({"auto": None, "on": True, "off": False})
DEVICES = get_args(get_type_hints(ComputeArgs)["device"])
FORMS = (
    "a recorded training run (in.latents, out.loss, ...), recorded model outputs (text.*, vae.*, unet.*, sample.*), "
    "the effect of a LoRA on them (multiplier, ...), tokens.json or kohya_tables.json"
)


@dataclass(frozen=True)
class Settings:
    """The command line, but for the files to replay."""

    models: Path | None
    lora: Path | None
    jit: bool | None
    device: str


def replay_file(path: Path, settings: Settings) -> list[Finding]:
    """Replay one file of any kind.

    Raises:
        ValueError: it is no recording, or not a whole one.
    """
    if path.suffix.lower() == ".json":
        return _replay_json(path)
    with SafetensorsFile(path) as file:
        names = set(file.keys())
    if "in.latents" in names or "out.loss" in names:
        return _replay_steps(path, settings)
    if "multiplier" in names:
        return _replay_effect(path, settings)
    if any(name.startswith(("text.", "vae.", "unet.", "sample.")) for name in names):
        return _replay_models(path, settings)
    raise ValueError(f"{path} is not a recording; {FORMS} can be replayed")


def _replay_json(path: Path) -> list[Finding]:
    from tools.replay_tables import replay_tables, replay_tokens

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if isinstance(content, list) and all(isinstance(case, dict) and "ids1" in case for case in content):
        return replay_tokens(content)
    if isinstance(content, dict) and content:
        return replay_tables(content)
    raise ValueError(f"{path} is not a recording; {FORMS} can be replayed")


def _device(settings: Settings) -> Any:
    from library.device.setup import init_device

    return init_device(settings.device, compiled=settings.jit is not False)


def _replay_steps(path: Path, settings: Settings) -> list[Finding]:
    from tools.replay_steps import replay_steps

    return replay_steps(path, settings.jit, _device(settings))


def _replay_models(path: Path, settings: Settings) -> list[Finding]:
    from tools.replay_models import replay_models

    return replay_models(path, _device(settings))


def _replay_effect(path: Path, settings: Settings) -> list[Finding]:
    from tools.replay_models import replay_effect

    if settings.models is None or settings.lora is None:
        raise ValueError(f"{path} holds the effect of a LoRA on recorded models: give both with --models and --lora")
    return replay_effect(path, settings.models, settings.lora, _device(settings))


def replay_all(files: Sequence[Path], settings: Settings) -> Iterator[tuple[str, Finding]]:
    """(file, finding) of every file in turn; a file that cannot be replayed is one finding."""
    for path in files:
        try:
            findings = replay_file(path, settings)
        except ValueError as error:
            findings = [Finding("", "error", detail=str(error))]
        except Exception as error:  # whatever goes wrong in one file, the others are replayed
            traceback.print_exc()
            findings = [Finding("", "error", detail=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")]
        for finding in findings:
            yield str(path), finding


def write_json(path: Path, findings: Sequence[tuple[str, Finding]]) -> None:
    """All findings as one JSON file. Raises ValueError when it cannot be written."""
    content = {
        "ok": all(finding.holds for _, finding in findings),
        "findings": [finding.as_json(file) for file, finding in findings],
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_whole_bytes(path, text.encode())


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Replay recordings of the reference with this project's code: one line per file and quantity, "
        "exit status 0 only if all hold."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=FORMS)
    parser.add_argument("--models", type=Path, help="the recorded model outputs that an effect file refers to")
    parser.add_argument("--lora", type=Path, help="the LoRA whose effect an effect file holds")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write all results to this JSON file")
    parser.add_argument("--jit", choices=tuple(JIT), default="auto", help="compile blocks; auto: as the recording says")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    settings = Settings(args.models, args.lora, JIT[args.jit], args.device)
    findings = []
    try:
        if args.json:
            ensure_writable(args.json.absolute().parent)
        for file, finding in replay_all(args.files, settings):
            print(finding.line(file), flush=True)
            findings.append((file, finding))
        if args.json:
            write_json(args.json, findings)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    bad = sum(not finding.holds for _, finding in findings)
    print(f"{len(findings)} results, {bad} do not hold" if bad else f"all {len(findings)} results hold")
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("GLOG_v", "3")  # MindSpore warns at every second compilation
    sys.exit(main())
