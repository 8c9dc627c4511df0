"""When a run saves, under which name, what each file says of itself, and which older files go."""

import json
from pathlib import Path

import numpy as np
import pytest

from library.device.mindspore_ckpt import load_ckpt
from library.files.safetensors_utils import SafetensorsFile
from library.runs.length import Length
from library.runs.loop import Position
from library.runs.saver import Saver
from library.settings.flag_groups import SaveArgs
from library.training.step import StepResult

STEPS_PER_EPOCH = 3
TEXTS = {
    "ss_network_module": "networks.lora",
    "ss_output_name": "a",
    "ss_learning_rate": "0.1",
    "modelspec.title": "a",
}
RESULT = StepResult(0.5, True)


class _Weights:
    """What is saved: one tensor that holds the number of the step."""

    def __init__(self) -> None:
        self.step = 0

    def __call__(self) -> dict[str, np.ndarray]:
        return {"lora_x.lora_up.weight": np.full((2, 2), self.step, np.float32)}


def go(folder: Path, total_steps: int, seed_given: bool = True, **options: object) -> Saver:
    """Call a saver as the loop would in a run of one batch a step."""
    epochs = -(-total_steps // STEPS_PER_EPOCH)
    weights = _Weights()
    save = SaveArgs(output_dir=str(folder), output_name="a", **options)  # type: ignore[arg-type]
    saver = Saver(
        save, weights, lambda: TEXTS, seed_given, Length(STEPS_PER_EPOCH, STEPS_PER_EPOCH, total_steps, epochs)
    )
    for step in range(1, total_steps + 1):
        weights.step = step
        epoch, batch = divmod(step - 1, STEPS_PER_EPOCH)
        position = Position(epoch + 1, batch + 1, step, 2 * step)
        saver.after_step(position, RESULT)
        if batch + 1 == STEPS_PER_EPOCH or step == total_steps:
            saver.after_epoch(position)
    saver.after_run(position)
    return saver


def saved(folder: Path) -> dict[str, tuple[int, str, str]]:
    """Name -> (step that its tensor is of, ss_steps, ss_epoch)."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with SafetensorsFile(path) as file:
            (key,) = file.keys()
            found[path.name.removesuffix(".safetensors")] = (
                int(file.read(key)[0, 0]),
                file.metadata["ss_steps"],
                file.metadata["ss_epoch"],
            )
    return found


def test_the_last_file_says_how_far_the_run_came(tmp_path: Path) -> None:
    saver = go(tmp_path, 7)
    assert saved(tmp_path) == {"a": (7, "7", "3")}
    assert saver.last == tmp_path / "a.safetensors"


def test_every_so_many_steps_but_for_the_last_which_is_the_final_files(tmp_path: Path) -> None:
    go(tmp_path, 8, save_every_n_steps=2)
    assert saved(tmp_path) == {
        "a-step00000002": (2, "2", "1"),
        "a-step00000004": (4, "4", "2"),
        "a-step00000006": (6, "6", "2"),
        "a": (8, "8", "3"),
    }


def test_every_so_many_epochs_but_for_the_last(tmp_path: Path) -> None:
    go(tmp_path, 18, save_every_n_epochs=2)
    assert saved(tmp_path) == {"a-000002": (6, "6", "2"), "a-000004": (12, "12", "4"), "a": (18, "18", "6")}


def test_a_run_that_ends_within_an_epoch_saves_no_file_for_it(tmp_path: Path) -> None:
    go(tmp_path, 5, save_every_n_epochs=1)
    assert set(saved(tmp_path)) == {"a-000001", "a"}


@pytest.mark.parametrize(("ratio", "epochs"), [(2, [5]), (3, [3, 6, 9]), (4, [2, 4, 6, 8]), (20, list(range(1, 10)))])
def test_a_ratio_is_a_number_of_files(tmp_path: Path, ratio: int, epochs: list[int]) -> None:
    """About so many in ten epochs: every (10 // ratio)-th, at least every one; it replaces save_every_n_epochs."""
    go(tmp_path, 10 * STEPS_PER_EPOCH, save_n_epoch_ratio=ratio, save_every_n_epochs=7)
    assert set(saved(tmp_path)) == {f"a-{epoch:06d}" for epoch in epochs} | {"a"}


def test_older_files_go(tmp_path: Path) -> None:
    """Epochs are a number of files; steps a distance, as in the original."""
    go(tmp_path / "epochs", 6 * STEPS_PER_EPOCH, save_every_n_epochs=1, save_last_n_epochs=2)
    assert set(saved(tmp_path / "epochs")) == {"a-000004", "a-000005", "a"}
    go(tmp_path / "steps", 12, save_every_n_steps=2, save_last_n_steps=4)
    assert set(saved(tmp_path / "steps")) == {"a-step00000006", "a-step00000008", "a-step00000010", "a"}


def test_a_file_is_hashed_and_described(tmp_path: Path) -> None:
    go(tmp_path, 1)
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        metadata = file.metadata
    assert TEXTS.items() <= metadata.items()
    assert len(metadata["sshs_model_hash"]) == 64
    assert len(metadata["sshs_legacy_hash"]) == 8
    assert "ss_training_finished_at" not in metadata, "the run has a seed: equal runs write equal files"


def test_without_a_seed_the_time_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    go(tmp_path, 1, seed_given=False)
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        assert float(file.metadata["ss_training_finished_at"]) > 1.7e9


def test_no_metadata_keeps_what_a_program_needs(tmp_path: Path) -> None:
    go(tmp_path, 1, no_metadata=True)
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        kept = {key for key in file.metadata if not key.startswith("sshs_")}
    assert kept == {"ss_network_module", "modelspec.title"}


@pytest.mark.parametrize(("precision", "dtype"), [(None, "F32"), ("float", "F32"), ("fp16", "F16"), ("bf16", "BF16")])
def test_precision(tmp_path: Path, precision: str | None, dtype: str) -> None:
    go(tmp_path, 1, save_precision=precision)
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        assert file.dtype("lora_x.lora_up.weight") == dtype


def test_ckpt(tmp_path: Path) -> None:
    go(tmp_path, 2, save_model_as="ckpt", save_every_n_steps=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-step00000001.ckpt", "a.ckpt"]
    tensors, metadata = load_ckpt(tmp_path / "a.ckpt")
    assert tensors["lora_x.lora_up.weight"][0, 0] == 2
    assert metadata["ss_steps"] == "2"


def test_the_place_is_tried_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps({}))
    saver = Saver(SaveArgs(output_dir=str(tmp_path / "file")), _Weights(), lambda: TEXTS, True, Length(1, 1, 1, 1))
    with pytest.raises(ValueError, match="choose another folder"):
        saver.check_place(10)
    small = Saver(SaveArgs(output_dir=str(tmp_path)), _Weights(), lambda: TEXTS, True, Length(1, 1, 1, 1))
    with pytest.raises(ValueError, match="are needed"):
        small.check_place(2**60)
