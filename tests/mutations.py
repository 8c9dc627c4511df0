"""Small wrong changes to the wiring, one at a time, and whether a test notices.

python -m tests.mutations              all of them; about a quarter of an hour on two cores
python -m tests.mutations loop saver   those whose file has one of these words in its path

Each is made in a copy of the repository, where the tests named for it are run; nothing is changed here. A change that
no test notices survives, and is printed. Parts of the library are tested against formulas and recordings; what was once
seen to survive was between the parts: which number is taken where. A new joint comes with a line in this table.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOOP, SAVER, DRAWS = "tests/unit/test_loop.py", "tests/unit/test_saver.py", "tests/unit/test_draws.py"
TOY, STEP, WEIGHTS = (f"tests/parity/test_{name}.py" for name in ("toy_family", "step", "trained_weights"))
RULES, GROUPS = "tests/parity/test_optimizer_rules.py", "tests/parity/test_param_groups.py"
FILES = "tests/unit/test_whole_file.py"
TIMEOUT_S = 1800
"""Machines may be busy; a test that never ends would count as noticed."""


@dataclass(frozen=True)
class Mutation:
    """One wrong change."""

    what: str
    file: str
    """Below ``library`` or ``networks``."""
    old: str
    """Occurs once in the file."""
    new: str
    tests: tuple[str, ...]
    """What should notice."""


def _m(what: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(what, file, old, new, tests)


MUTATIONS: tuple[Mutation, ...] = (
    # --- the loop ---
    _m("the rate of the step after", "library/runs/loop.py",
       "training.lr_factor(position.step)", "training.lr_factor(position.step + 1)", LOOP),
    _m("an epoch's last batch is not told", "library/runs/loop.py",
       "position.batch + 1 == training.length", "position.batch == training.length", LOOP),
    _m("the place in the epoch goes on counting", "library/runs/loop.py",
       "epoch=position.epoch + 1, batch=0)", "epoch=position.epoch + 1)", LOOP),
    _m("samples are counted as batches", "library/runs/loop.py",
       "position.samples + len(batch.keys)", "position.samples + 1", LOOP),
    _m("batches are counted as steps", "library/runs/loop.py",
       "position.step + result.has_updated", "position.step + 1", LOOP),
    _m("the run goes on to the end of the epoch", "library/runs/loop.py",
       "if position.step == total_steps:\n                    break", "if False:\n                    break", LOOP),
    _m("followers see the position before the batch", "library/runs/loop.py",
       "follower.after_batch(position, batch, result)",
       "follower.after_batch(replace(position, batch=position.batch - 1), batch, result)", LOOP),
    _m("stopping ends the epoch first", "library/runs/loop.py",
       "if is_asked_to_stop():\n                    return position",
       "if is_asked_to_stop():\n                    break", LOOP),
    _m("an average that never forgets", "library/runs/progress_bar.py",
       "self.average.add(position.batch - 1, result.loss)", "self.average.add(position.samples, result.loss)", LOOP),
    _m("an old loss is not taken off the average", "library/runs/loss_average.py",
       "self._total += loss - self._losses[position]", "self._total += loss", LOOP),
    _m("a short last group is no step", "library/runs/length.py",
       "per_epoch = math.ceil(", "per_epoch = math.floor(", LOOP),
    # --- saving ---
    _m("a ratio of epochs is multiplied", "library/runs/saver.py",
       "length.total_epochs // ratio", "length.total_epochs * ratio", SAVER),
    _m("epochs are counted from 0 in metadata", "library/runs/saver.py",
       "position.step, position.epoch, file_date", "position.step, position.epoch - 1, file_date", SAVER),
    _m("the last step has a file of its own", "library/runs/saver.py",
       "position.step < self._length.total_steps", "position.step <= self._length.total_steps", SAVER),
    _m("the file of an epoch is named by the one before", "library/runs/saver.py",
       "self._save(self._epoch_name(position.epoch), position)",
       "self._save(self._epoch_name(position.epoch - 1), position)", SAVER),
    _m("older files stay", "library/runs/saver.py",
       "path.unlink()", "pass", SAVER),
    _m("what is saved is what was there at first", "library/runs/train_network.py",
       "        network.tensors.update(trained.named())\n        return network.state_dict()",
       "        return {key: value * 0 for key, value in network.state_dict().items()}", TOY),
    _m("the file is not forced to the disk", "library/files/whole_file.py",
       "        _sync(part)\n", "", FILES),
    _m("the folder is not forced to the disk", "library/files/whole_file.py",
       "        _sync(path.parent)", "        pass", FILES),
    # --- what is random ---
    _m("the same noise in every batch", "library/training/diffusion.py",
       'self.rng.numpy("noise", index)', 'self.rng.numpy("noise", 0)', DRAWS),
    _m("timesteps from the noise's stream", "library/training/diffusion.py",
       'draw_timesteps(self.rng.numpy("timesteps", index)', "draw_timesteps(generator", DRAWS),
    _m("the same timesteps in every batch", "library/training/diffusion.py",
       'self.rng.numpy("timesteps", index)', 'self.rng.numpy("timesteps", 0)', DRAWS),
    _m("the same latents in every epoch", "library/training/diffusion.py",
       'self.rng.numpy("latents", index)', 'self.rng.numpy("latents", 0)', DRAWS),
    _m("input perturbation in the target", "library/training/diffusion.py",
       "    target = noise_BCHW\n", "    target = input_noise\n", DRAWS),
    _m("latents are not scaled", "library/training/diffusion.py",
       "return posterior.draw(eps) * np.float32(scale)", "return posterior.draw(eps)", DRAWS),
    _m("equal dropout masks in every batch", "library/runs/train_network.py",
       'rng.key("dropout", index, ', 'rng.key("dropout", 0, ', STEP),
    _m("equal dropout masks in every block", "library/runs/train_network.py",
       "block.part + block.prefix + mine.tensors[0].names[0]", '""', STEP),
    _m("warmup of tokens counts batches", "library/runs/train_network.py",
       "batches_per_step=plan.args.optimizer.gradient_accumulation_steps", "batches_per_step=1", TOY),
    _m("each epoch has the first one's draws", "library/runs/train_network.py",
       "(position.epoch - 1) * plan.length.batches_per_epoch", "0", TOY),
    _m("the schedule is as long as a flag says that another replaced", "library/runs/train_network.py",
       "args.optimizer.learning_rate, length.total_steps)", "args.optimizer.learning_rate, args.run.max_train_steps)",
       TOY),
    # --- the step ---
    _m("no division by the accumulated batches", "library/training/step.py",
       "scale, norm = 1.0 / self._accumulation_steps, None", "scale, norm = 1.0, None", STEP),
    _m("a short last group is divided by its own length", "library/training/step.py",
       "scale, norm = 1.0 / self._accumulation_steps, None", "scale, norm = 1.0 / self._pending, None", STEP),
    _m("clipping after the update", "library/training/step.py",
       "scale *= _clip_factor(norm, self._max_grad_norm)", "pass", STEP),
    _m("the norm is of the sum, not of the mean", "library/training/step.py",
       "norm = scale * self._sum.norm()", "norm = self._sum.norm()", STEP),
    _m("groups run into each other", "library/training/step.py",
       "        self._pending = 0\n        return norm", "        return norm", STEP),
    _m("a loss that is no number is trained on", "library/training/step.py",
       "if not np.isfinite(value):", "if False:", STEP),
    _m("on the way back nothing is clipped", "library/training/step.py",
       "            scale = _clip_factor(own.norm(), self._max_grad_norm)", "            own.norm()", WEIGHTS),
    _m("the gradient of the last batch only, on a host", "library/training/gradients.py",
       "np.add(total, gradient.asnumpy(), out=total)", "np.copyto(total, gradient.asnumpy())", STEP),
    _m("the gradient of the last batch only, on a device", "library/training/gradients.py",
       "self._sums[trained] = others + gradient", "self._sums[trained] = gradient", STEP),
    _m("gradients are never given up", "library/training/gradients.py",
       "sums, self._sums = self._sums, {}", "sums = dict(self._sums)", STEP),
    _m("of a block applied twice the last gradient only", "library/training/block_tape.py",
       "[a + b for a, b in zip(others, mine, strict=True)] if others else mine", "mine", WEIGHTS),
    _m("of a tensor read twice the last gradient only", "library/training/block_tape.py",
       "flowing[maker] + d_input if maker in flowing else d_input", "d_input", WEIGHTS),
    _m("a block's gradients are held on to", "library/training/block_tape.py",
       "                del mine, others", "                pass", WEIGHTS),
    # --- what is trained ---
    _m("turned weights come back turned", "library/training/trained.py",
       "part.T if self.is_turned else part", "part", WEIGHTS),
    _m("every weight of a block is trained", "library/training/trained.py",
       "if wanted(block.part, block.prefix + name))", "if True)", WEIGHTS),
    _m("groups do not part the tensors of a stack", "library/training/trained.py",
       "tuple(numbers.setdefault(g, len(numbers)) for g in groups)", "tuple(0 for g in groups)", GROUPS),
    # --- learning rates ---
    _m("text encoders have the UNet's rate", "library/runs/network_setup.py",
       "text if part in TEXT_PARTS else unet for part in parts", "unet for part in parts", GROUPS),
    _m("the UNet's rate is that of the text encoders", "library/runs/network_setup.py",
       "unet = options.learning_rate if options.unet_lr is None else options.unet_lr",
       "unet = options.learning_rate", GROUPS),
    _m("LoRA+ multiplies down", "networks/lora.py",
       '        """Up."""\n        return (UP,)', '        """Up."""\n        return (DOWN,)', GROUPS),
    _m("LoRA+ reaches parts without a ratio", "networks/network_base.py",
       "if part in TEXT_PARTS else unet) or everywhere", "if part in TEXT_PARTS else unet) or everywhere or unet",
       GROUPS),
    _m("the factor of a block is not used", "library/runs/network_setup.py",
       "rate * layer.lr_weight", "rate", GROUPS),
    _m("wrong numbers of blocks", "library/families/sdxl/targets.py",
       '"block": first + int(match[2])', '"block": first + int(match[2]) - 1', GROUPS),
    _m("layers of factor 0 stay", "networks/network_base.py",
       "if adapter is not None and lr_weight != 0:", "if adapter is not None:", GROUPS),
    _m("the schedule's factor is not used", "library/training/optimizers/optimizer.py",
       "tensor.group.lr * lr_factor", "tensor.group.lr", STEP),
    _m("every group has the first one's rate", "library/training/optimizers/optimizer.py",
       "tensor.group.lr * lr_factor", "next(iter(self._state)).group.lr * lr_factor", STEP),
    # --- rules ---
    _m("tensors alike share a state", "library/training/optimizers/optimizer.py",
       "{tensor: self._first_state(tensor) for tensor in tensors}",
       "{tensor: next((s for t, s in states if t.shape == tensor.shape), None) or self._first_state(tensor) "
       "for states in [[(t, self._first_state(t)) for t in tensors]] for tensor in tensors}", RULES),
    _m("states of members of a stack are mixed", "library/training/optimizers/optimizer.py",
       "zeros = {name: np.zeros(tensor.stacked_shape(shape), np.float32)",
       "zeros = {name: np.zeros((1, *shape), np.float32)", RULES),
    _m("members of a stack share their mean", "library/training/optimizers/adafactor.py",
       "whole = tuple(range(1, len(value.shape)))", "whole = tuple(range(len(value.shape)))", RULES),
    _m("rows and columns are exchanged", "library/training/optimizers/adafactor.py",
       "row / maths.mean(row, (-2,))", "row / maths.mean(row, (-1,))", RULES),
    _m("steps are not counted", "library/training/optimizers/optimizer.py",
       "        self.steps += 1", "        self.steps = 1", RULES),
    _m("a group's own decay is not used", "library/training/optimizers/adamw.py",
       "self.weight_decay if now.weight_decay is None else now.weight_decay", "self.weight_decay", RULES),
    # --- families ---
    _m("caches are named as one family's are", "library/runs/caching.py",
       "family.facts.latents_ending", '"_sdxl.npz"', TOY),
    _m("text caches are named as one family's are", "library/runs/caching.py",
       "ending=family.facts.text_ending", 'ending="_te_outputs.npz"', TOY),
    _m("metadata name one family", "library/runs/run_metadata.py",
       "base_model_version=family.base_model_version", 'base_model_version="sdxl_base_v1-0"', TOY),
    _m("trained text encoders are taken from the frozen ones", "library/runs/train_network.py",
       "StepOptions(not args.network.network_train_unet_only,", "StepOptions(False,", TOY),
    _m("gradients are not clipped by the flag", "library/runs/train_network.py",
       "max_grad_norm=args.optimizer.max_grad_norm", "max_grad_norm=1.0", TOY),
    _m("batches are not accumulated by the flag", "library/runs/train_network.py",
       "accumulation_steps=args.optimizer.gradient_accumulation_steps,\n        block_keys",
       "accumulation_steps=1,\n        block_keys", TOY),
)  # fmt: skip


def copy_repository(folder: Path) -> None:
    """All files that git knows, as they are here, and the environment."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())


def survives(mutation: Mutation, folder: Path) -> bool:
    """Whether the tests pass with the change made in the copy; the copy is as before afterwards."""
    path = folder / mutation.file
    before = path.read_text(encoding="utf-8")
    assert before.count(mutation.old) == 1, f"{mutation.file} has {before.count(mutation.old)} times {mutation.old!r}"
    path.write_text(before.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        return passes(mutation.tests, folder)
    finally:
        path.write_text(before, encoding="utf-8")


def passes(tests: Sequence[str], folder: Path) -> bool:
    """Whether tests pass in a folder. What takes longer than any should counts as noticed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    assert done.returncode in (0, 1, 2), done.stdout.decode()[-3000:]
    return done.returncode == 0


def main(words: Sequence[str]) -> int:
    """Make each change and run its tests; the number of survivors is the exit status."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.file for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_repository(folder)
        tests = list(dict.fromkeys(test for mutation in chosen for test in mutation.tests))
        assert passes(tests, folder), "the tests must pass before anything is changed"
        for mutation in chosen:
            has_survived = survives(mutation, folder)
            print(f"{'SURVIVED' if has_survived else 'noticed '}  {mutation.file}: {mutation.what}", flush=True)
            if has_survived:
                survivors.append(mutation)
    print(f"{len(survivors)} of {len(chosen)} survived")
    return len(survivors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
