"""Names of saved files, and which of the older ones to remove; both as kohya has them."""

from types import MappingProxyType

# --save_model_as -> ending of the file
ENDINGS = MappingProxyType({"safetensors": ".safetensors", "ckpt": ".ckpt"})
# Names used when there is no --output_name.
EPOCH_NAME = "epoch"
STEP_NAME = "at"
LAST_NAME = "last"


def epoch_file_name(output_name: str | None, epoch: int, save_model_as: str = "safetensors") -> str:
    """File saved after an epoch (1 is the first): ``name-000003.safetensors``."""
    return f"{output_name or EPOCH_NAME}-{epoch:06d}{ENDINGS[save_model_as]}"


def step_file_name(output_name: str | None, step: int, save_model_as: str = "safetensors") -> str:
    """File saved after a step (1 is the first): ``name-step00000300.safetensors``."""
    return f"{output_name or STEP_NAME}-step{step:08d}{ENDINGS[save_model_as]}"


def last_file_name(output_name: str | None, save_model_as: str = "safetensors") -> str:
    """File saved at the end of the run: ``name.safetensors``."""
    return f"{output_name or LAST_NAME}{ENDINGS[save_model_as]}"


def get_remove_epoch_no(epoch: int, save_every_n_epochs: int, save_last_n_epochs: int | None) -> int | None:
    """Epoch whose file goes when that of `epoch` was saved, so that `save_last_n_epochs` files stay; None: none."""
    if save_last_n_epochs is None:
        return None
    oldest = epoch - save_every_n_epochs * save_last_n_epochs
    return oldest if oldest >= 0 else None


def get_remove_step_no(step: int, save_every_n_steps: int, save_last_n_steps: int | None) -> int | None:
    """Step whose file goes when that of `step` was saved; None: none.

    `save_last_n_steps` is a distance in steps, not a number of files: saving every 10 and keeping the last 30, step
    50 removes step 10.
    """
    if save_last_n_steps is None:
        return None
    before = step - save_last_n_steps - 1
    oldest = before - before % save_every_n_steps
    return oldest if oldest >= 0 else None
