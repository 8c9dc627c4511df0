"""The recordings of the reference, replayed; and that a replay can fail."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from library.files.safetensors_utils import SafetensorsFile, save_file
from tools import replay as replay_tool
from tools.replay import Settings, main, replay_file
from tools.replay_recording import Outcome, Recording, compare, read_recording
from tools.replay_result import Finding, judged, relative_error, relative_errors, worst_of

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(models=None, lora=None, jit=None, device="CPU")
SHARED = (
    *("unet_only_adamw", "min_snr_gamma", "max_grad_norm", "adamw_args", "v_parameterization_zero_terminal_snr"),
    "masked_loss",
)
"""Recordings of the same shapes: they share compiled programs, the first pays for them."""
OWN_SHAPES = ("non_square", "tokens_225", "conv_lora", "text_encoders_and_unet")
"""Recordings that compile programs of their own."""
RECORDED = {"loss[0]", "loss[1:]", "noise_pred", "grad_l2", "grad tensors", "grad_norm"}
RECORDED |= {"final_delta_l2", "final tensors"}
"""What every recording in the golden folder holds."""


def not_holding(findings: list[Finding]) -> list[str]:
    return [finding.line("") for finding in findings if finding.status != "ok"]


def step_file(golden: Path, name: str) -> Path:
    return golden / "steps" / f"{name}.safetensors"


# --- steps ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*SHARED, *(pytest.param(n, marks=pytest.mark.slow) for n in OWN_SHAPES)])
def test_recorded_steps(golden: Path, name: str) -> None:
    findings = replay_file(step_file(golden, name), SETTINGS)
    assert not_holding(findings) == []
    assert {finding.quantity for finding in findings} == RECORDED


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--optimizer_type", "NoSuchOptimizer"], "--optimizer_type NoSuchOptimizer: not built yet"),
        (["--network_args", "no_such_arg=1"], "--network_args no_such_arg=1: networks.lora knows"),
        (["--network_dropout", "0.1"], "a dropout cannot be replayed"),
        (["--network_module", "networks.nothing"], "--network_module networks.nothing"),
        (["--no_such_flag"], "--no_such_flag is not a flag"),
    ],
)
def test_what_is_not_built_is_refused_by_name(golden: Path, tmp_path: Path, argv: list[str], reason: str) -> None:
    path = changed(step_file(golden, "unet_only_adamw"), tmp_path, argv=argv)
    (finding,) = replay_file(path, SETTINGS)
    assert finding.status == "refused" and not finding.holds
    assert finding.detail.startswith(reason) and "\n" not in finding.line("f")


def test_another_network_than_the_recorded_one_fails(golden: Path, tmp_path: Path) -> None:
    path = changed(step_file(golden, "unet_only_adamw"), tmp_path, argv=["--network_args", "conv_dim=2"])
    (finding,) = replay_file(path, SETTINGS)
    assert (finding.quantity, finding.status) == ("lora_keys", "FAIL")
    assert "too many: lora_unet_input_blocks_1_0" in finding.detail and "(132 in all)" in finding.detail


def changed(path: Path, folder: Path, argv: list[str] | None = None, **factors: float) -> Path:
    """A copy of a recording with more on its command line and some outputs multiplied; ``_`` stands for ``.``."""
    with SafetensorsFile(path) as file:
        tensors, metadata = {key: file.read(key) for key in file}, dict(file.metadata)
    for name, factor in factors.items():
        tensors[name.replace("__", ".")] = tensors[name.replace("__", ".")] * factor
    metadata["argv"] = json.dumps([*json.loads(metadata["argv"]), *(argv or [])])
    save_file(tensors, folder / path.name, metadata)
    return folder / path.name


# --- a replay that can fail -------------------------------------------------------------------------------------------
def perfect(recording: Recording) -> Outcome:
    """An outcome with the recorded numbers; norms and changes come from tensors of those norms."""
    tensors = recording.tensors
    gradients = {k: np.float64([n]) for k, n in zip(recording.grad_keys, tensors["out.grad_step0_l2"], strict=True)}
    gradients |= {k.removeprefix("out.grad_step0."): v for k, v in tensors.items() if k.startswith("out.grad_step0.")}
    after = {k: np.float64([n]) for k, n in zip(recording.lora_keys, tensors["out.final_delta_l2"], strict=True)}
    whole = {k.removeprefix("out.final."): v for k, v in tensors.items() if k.startswith("out.final.")}
    before = {key: np.zeros_like(value) for key, value in after.items()}
    before |= {key: value - after[key] / np.sqrt(value.size) for key, value in whole.items()}
    return Outcome(
        tensors["out.loss"], tensors["out.grad_norm"], tensors["out.noise_pred_step0"], gradients, before, after | whole
    )


def changed_first(values: dict[str, np.ndarray], factor: float) -> dict[str, np.ndarray]:
    first = next(iter(values))
    return values | {first: values[first] * factor}


def first_and_last(values: np.ndarray, first: float, last: float) -> np.ndarray:
    return np.concatenate([values[:1] * first, values[1:-1], values[-1:] * last])


def perturbed() -> Iterator[tuple[str, Callable[[Outcome], Outcome]]]:
    """Outcomes just beyond a tolerance: what is to fail, and how to get there."""
    yield "loss[0]", lambda o: replace(o, losses_S=first_and_last(o.losses_S, 1 + 2e-5, 1))
    yield "loss[1:]", lambda o: replace(o, losses_S=first_and_last(o.losses_S, 1, 1 + 2e-3))
    yield "loss[1:]", lambda o: replace(o, losses_S=first_and_last(o.losses_S, 1, np.nan))
    yield "noise_pred", lambda o: replace(o, pred_BCHW=o.pred_BCHW * (1 + 2e-5))
    yield "noise_pred", lambda o: replace(o, pred_BCHW=o.pred_BCHW[:1])
    yield "grad_l2", lambda o: replace(o, gradients=changed_first(o.gradients, 1 + 2e-3))
    yield "grad_norm", lambda o: replace(o, norms_S=first_and_last(o.norms_S, 1, 1 + 2e-3))
    yield "final_delta_l2", lambda o: replace(o, before={key: -value for key, value in o.after.items()})
    yield "final tensors", lambda o: replace(o, after={k: v * 1.03 for k, v in o.after.items()})


@pytest.mark.parametrize(("quantity", "change"), perturbed())
def test_one_wrong_number_fails(golden: Path, quantity: str, change: Callable[[Outcome], Outcome]) -> None:
    recording = read_recording(step_file(golden, "unet_only_adamw"))
    outcome = perfect(recording)
    assert not_holding(compare(recording, outcome)) == []
    failing = {f.quantity for f in compare(recording, change(outcome)) if f.status == "FAIL"}
    assert quantity in failing


def test_one_wrong_gradient_among_the_whole_ones_fails(golden: Path) -> None:
    recording = read_recording(step_file(golden, "unet_only_adamw"))
    outcome = perfect(recording)
    key = next(k.removeprefix("out.grad_step0.") for k in recording.tensors if k.startswith("out.grad_step0."))
    wrong = replace(outcome, gradients=outcome.gradients | {key: -outcome.gradients[key]})
    assert {f.quantity for f in compare(recording, wrong) if f.status == "FAIL"} == {"grad tensors"}


def test_a_recording_with_one_wrong_number_fails(golden: Path, tmp_path: Path) -> None:
    path = changed(step_file(golden, "unet_only_adamw"), tmp_path, out__noise_pred_step0=1.0001)
    findings = replay_file(path, SETTINGS)
    assert {finding.quantity for finding in findings if not finding.holds} == {"noise_pred"}


def test_errors_are_relative() -> None:
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(0.5 / np.hypot(3, 4.5))
    assert relative_error(np.zeros(2), np.zeros(2)) == 0 and relative_error(np.ones(2), np.zeros(2)) == np.inf
    assert relative_error(np.zeros(2), np.zeros(3)) == np.inf
    np.testing.assert_allclose(relative_errors([1.1, 0, 2], [1, 0, 2]), [0.1, 0, 0])
    np.testing.assert_allclose(relative_errors([4, 2e-7], [4, 1e-7], 1e-6), [0, 1e-7 / 4], atol=1e-12)
    assert worst_of(np.array([1.0, np.nan, 2.0]), "abc")[1] == "b"
    assert judged("loss[0]", float("nan")).status == "FAIL"


# --- models, tables ---------------------------------------------------------------------------------------------------
def test_recorded_models(golden: Path) -> None:
    findings = replay_file(golden / "models.safetensors", SETTINGS)
    assert not_holding(findings) == []
    assert len(findings) == 12


def test_recorded_effect_of_a_lora(golden: Path) -> None:
    settings = replace(SETTINGS, models=golden / "models.safetensors", lora=golden / "lora_kohya.safetensors")
    findings = replay_file(golden / "lora_effect.safetensors", settings)
    assert not_holding(findings) == []
    assert len(findings) == 8


def test_another_multiplier_fails(golden: Path, tmp_path: Path) -> None:
    with SafetensorsFile(golden / "lora_effect.safetensors") as file:
        tensors = {key: file.read(key) for key in file}
    tensors["multiplier"] = np.float32(0.79).reshape(())
    save_file({k: v for k, v in tensors.items() if not k.startswith("unet.")}, tmp_path / "e.safetensors")
    settings = replace(SETTINGS, models=golden / "models.safetensors", lora=golden / "lora_kohya.safetensors")
    findings = replay_file(tmp_path / "e.safetensors", settings)
    assert [finding.status for finding in findings] == ["FAIL"] * 6


def test_recorded_tokens_and_tables(golden: Path) -> None:
    assert not_holding(replay_file(golden / "tokens.json", SETTINGS)) == []
    findings = replay_file(golden / "kohya_tables.json", SETTINGS)
    assert not_holding(findings) == [], "every table is built"
    assert len(findings) == 17


def test_wrong_tokens_and_tables_fail(golden: Path, tmp_path: Path) -> None:
    cases = json.loads((golden / "tokens.json").read_text())
    cases[5]["ids1"][0][3] += 1
    tables = json.loads((golden / "kohya_tables.json").read_text())
    tables["make_bucket_resolutions"][0]["result"][0][0] += 64
    some = {name: tables[name] for name in ("source", "make_bucket_resolutions", "set_tag_frequency")}
    some |= {"lr_lambda": {"no": "such form"}, "something new": [1]}
    (tmp_path / "tokens.json").write_text(json.dumps(cases))
    (tmp_path / "tables.json").write_text(json.dumps(some))
    (finding,) = replay_file(tmp_path / "tokens.json", SETTINGS)
    assert finding.status == "FAIL" and finding.detail.startswith("1 mismatches: tokens of text encoder 1")
    statuses = {finding.quantity: finding.status for finding in replay_file(tmp_path / "tables.json", SETTINGS)}
    assert statuses == {
        "make_bucket_resolutions": "FAIL",
        "set_tag_frequency": "ok",
        "lr_lambda": "FAIL",
        "something new": "not built",
    }


# --- the command line -------------------------------------------------------------------------------------------------
def test_files_that_are_no_recordings_are_told_one_by_one(
    tmp_path: Path, golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    save_file({"in.latents": np.zeros(2, np.float32)}, tmp_path / "half.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "other.json").write_text("[1]")
    shutil.copy(golden / "lora_effect.safetensors", tmp_path / "effect.safetensors")
    names = ["x.safetensors", "half.safetensors", "text.safetensors", "none.safetensors", "bad.json", "other.json",
             "none.json", "effect.safetensors"]  # fmt: skip
    assert main([*(str(tmp_path / name) for name in names), "--device", "CPU"]) == 1
    lines = capsys.readouterr().out.splitlines()
    says = ["is not a recording", "it lacks argv, checkpoint_seed", "safetensors", "no such file", "not JSON",
            "is not a recording", "No such file", "give both with --models and --lora"]  # fmt: skip
    assert len(lines) == len(names) + 1 and lines[-1] == "8 results, 8 do not hold"
    for name, text, line in zip(names, says, lines, strict=False):
        assert line.startswith(f"{tmp_path / name}: error: ") and text in line


def test_a_crash_in_one_file_does_not_hide_the_others(
    golden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(path: Path, settings: Settings) -> list[Finding]:
        if path.name == "crash":
            raise RuntimeError("first line\nsecond line")
        return [Finding("q", "ok")]

    monkeypatch.setattr(replay_tool, "replay_file", crash)
    assert main(["crash", "fine"]) == 1
    assert capsys.readouterr().out.splitlines()[:2] == ["crash: error: RuntimeError: first line", "fine: q: ok"]


def test_results_as_json(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out.json"
    assert main([str(golden / "tokens.json"), "--json", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["ok"] is True and content["findings"][0]["quantity"] == "tokens"
    assert capsys.readouterr().out.splitlines()[-1] == "all 1 results hold"
    (tmp_path / "file").write_text("")
    assert main([str(golden / "tokens.json"), "--json", str(tmp_path / "file" / "out.json")]) == 1
    assert "cannot be written to" in capsys.readouterr().err
    assert Finding("q", "FAIL", float("nan"), 1e-3).as_json("f")["error"] is None


def test_the_command_itself(golden: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "replay.py"), str(golden / "kohya_tables.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    assert "select_bucket: ok" in done.stdout
