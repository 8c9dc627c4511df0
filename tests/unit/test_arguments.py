"""The command line: every flag of the original is built, mapped or refused, and errors say what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from library.settings.arguments import (
    FLAGS,
    GROUPS,
    KNOWN,
    TrainArgs,
    UsageError,
    build_parser,
    parse_train_args,
    read_train_args,
)
from library.settings.config_util import dataset_configs
from library.settings.flags import flags_of
from library.settings.key_values import parse_key_values
from library.settings.kohya_flags import ALIASES, MAPPED, NO_MEANING, NOT_BUILT

KOHYA_FLAGS = tuple((Path(__file__).parent / "kohya_flags.txt").read_text().split())
OWN_FLAGS = {"device", "jit", "flash_attn", "te2_projection", "gradient_checkpointing_keep", "skip_bad_images"}
OWN_FLAGS |= {"dry_run", "report"}
TAKES = {name: takes for table in (MAPPED, NOT_BUILT, NO_MEANING) for name, (takes, _) in table.items()}

ISSUE_COMMAND = """--pretrained_model_name_or_path=base.safetensors --dataset_config=data.toml
    --network_module=networks.lora --network_alpha=256 --network_dim=256 --save_model_as=ckpt --learning_rate=1e-4
    --network_train_unet_only --network_dropout=0.1 --no_half_vae --lr_scheduler=constant --optimizer_type=AdamW
    --optimizer_args weight_decay=0.05 betas=0.9,0.98 --max_data_loader_n_workers=0 --max_train_steps=15000
    --save_precision=fp32 --save_every_n_steps=3000 --gradient_checkpointing --flash_attn --min_snr_gamma=5
    --noise_offset=0.0357 --adaptive_noise_scale=0.00357 --output_name=name --output_dir=out"""


def read(text: str) -> TrainArgs:
    """Read a command line that may lack the required flags."""
    return read_train_args(text.split(), require_paths=False)


def problem(text: str) -> str:
    """The message that refuses a command line."""
    with pytest.raises(UsageError) as caught:
        read(text)
    return str(caught.value)


def test_flags_are_the_originals_and_ours() -> None:
    assert len(KOHYA_FLAGS) == len(set(KOHYA_FLAGS)) == 196
    assert {name.removeprefix("--") for name in KOHYA_FLAGS} == set(KNOWN) - OWN_FLAGS
    assert len(KNOWN) == len(set(KNOWN)), "a flag is in two tables"


@pytest.mark.parametrize("flag", KOHYA_FLAGS)
def test_every_flag_of_the_original_is_answered(flag: str) -> None:
    name = flag.removeprefix("--")
    if name in NOT_BUILT or name in NO_MEANING:
        message = problem(flag if TAKES[name] == "" else f"{flag} 7")
        why = "not built yet; " if name in NOT_BUILT else "has no meaning here: "
        assert message.startswith(f"{flag}: {why}")
        assert "\n" not in message
    elif name in MAPPED or name in ALIASES:
        notices = read(flag if TAKES.get(name) == "" else f"{flag} 7").notices
        assert len(notices) == 1
        assert notices[0].startswith(flag)
    else:
        assert flag in build_parser().format_help()


@pytest.mark.parametrize("flag", sorted({*NOT_BUILT, *NO_MEANING}))
def test_a_refused_flag_may_be_off(flag: str) -> None:
    if TAKES[flag]:
        for off in ("0", "0.0", "none", "", "no"):
            read_train_args([f"--{flag}", off], require_paths=False)


def test_the_command_of_the_guide() -> None:
    args = read_train_args(ISSUE_COMMAND.split())
    assert args.model.pretrained_model_name_or_path == "base.safetensors"
    assert args.model.no_half_vae
    assert (args.network.network_dim, args.network.network_alpha, args.network.network_dropout) == (256, 256.0, 0.1)
    assert args.network.network_train_unet_only
    assert parse_key_values(args.optimizer.optimizer_args) == {"weight_decay": 0.05, "betas": (0.9, 0.98)}
    assert (args.save.save_model_as, args.save.save_precision, args.save.save_every_n_steps) == ("ckpt", "float", 3000)
    assert (args.loss.min_snr_gamma, args.loss.noise_offset, args.loss.adaptive_noise_scale) == (5, 0.0357, 0.00357)
    assert args.compute.gradient_checkpointing
    assert args.compute.flash_attn
    assert args.dataset.max_data_loader_n_workers == 0
    assert args.notices == ()


def test_defaults_are_the_originals() -> None:
    args = read("")
    assert (args.run.max_train_steps, args.optimizer.learning_rate, args.optimizer.max_grad_norm) == (1600, 2e-6, 1.0)
    assert (args.network.network_dim, str(args.network.network_alpha)) == (None, "1")
    assert args.dataset.caption_extension == ".caption"
    assert (args.lr.lr_scheduler, args.lr.lr_warmup_steps) == ("constant", 0)
    assert (args.save.save_model_as, args.save.save_precision, args.run.seed) == ("safetensors", None, None)
    assert (args.compute.device, args.compute.jit, args.model.te2_projection) == ("auto", "auto", "correct")


def test_every_default_is_one_of_the_allowed() -> None:
    for flag in FLAGS.values():
        if not (flag.default in (None, "", ()) or flag.is_switch):
            assert flag.read(str(flag.default), flag.name) == flag.default, flag.name


def test_help_tells_every_field_text_and_loads_nothing_heavy() -> None:
    text = " ".join(build_parser().format_help().split())
    for group in GROUPS.values():
        for flag in flags_of(group):
            assert flag.help in text, flag.name
    code = "import sys, library.settings.arguments, library.settings.config_util; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "mindspore", "transformers", "torch", "PIL", "mindone"} & set(loaded)


def test_help_exits_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_train_args(["--help"])
    assert caught.value.code == 0
    assert "--network_dim N" in capsys.readouterr().out


def test_all_problems_come_at_once_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--network_dim", "0", "--save_state", "--clip_skip", "2", "--save_model_as", "pt", "--learnig_rate", "1"]
    with pytest.raises(SystemExit) as caught:
        parse_train_args([*argv, "--output_dir", "out"])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert "8 problems with the command line" in lines[0]
    assert [line.split()[0].rstrip(":") for line in lines[1:-1]] == [
        "--learnig_rate", "--network_dim", "--save_state", "--clip_skip", "--save_model_as",
        "--pretrained_model_name_or_path", "--dataset_config", "--network_module",
    ]  # fmt: skip
    assert lines[1].endswith("is not a flag. Did you mean --learning_rate?")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--network_dim x", ["--network_dim x", "whole number of at least 1"]),
        ("--network_dim 4.5", ["--network_dim 4.5"]),
        ("--network_dropout 1", ["--network_dropout 1", "at least 0 and below 1"]),
        ("--max_train_steps 0", ["--max_train_steps 0"]),
        ("--learning_rate nan", ["--learning_rate nan"]),
        ("--text_encoder_lr 1e-4 x", ["--text_encoder_lr x"]),
        ("--save_model_as safetensor", ["one of safetensors, ckpt", "Did you mean safetensors?"]),
        ("--save_model_as pt", ["pickle", "use safetensors"]),
        ("--loss_type huber", ["--loss_type huber: not built yet"]),
        ("--mixed_precision fp32", ["no, fp16, bf16"]),
        ("--max_token_length 100", ["75, 150, 225"]),
        ("--resolution 1024x768", ["--resolution 1024x768", "1216,832"]),
        ("--resolution 1,2,3", ["--resolution"]),
        ("--lr_warmup_steps 1.0", ["--lr_warmup_steps 1.0", "5%"]),
        ("--lr_warmup_steps 120%", ["--lr_warmup_steps"]),
        ("--optimizer_args weight_decay", ["--optimizer_args weight_decay", "key=value"]),
        ("--optimizer_args a=cosine", ["--optimizer_args a=cosine", "'cosine'"]),
        ("--network_args =4", ["--network_args"]),
        ("--adaptive_noise_scale 0.1", ["--adaptive_noise_scale", "--noise_offset"]),
        ("--scale_v_pred_loss_like_noise_pred", ["--v_parameterization"]),
        ("--v_pred_like_loss 0.5 --v_parameterization", ["--v_pred_like_loss"]),
        ("--network_train_unet_only --network_train_text_encoder_only", ["train nothing"]),
        ("--min_timestep 500 --max_timestep 500", ["--min_timestep"]),
        ("--save 3", ["ambiguous", "--save_every_n_steps"]),
        ("--network_dim", ["--network_dim", "expected one argument"]),
        ("--flash_attn true", ["true: belongs to no flag"]),
        ("--flash_atention", ["Did you mean --flash_attn?"]),
    ],
)
def test_a_wrong_command_line_is_refused(command: str, words: list[str]) -> None:
    message = problem(command)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("100", 100), ("5%", 0.05), ("0.05", 0.05), ("0.0", 0.0), ("100%", 1.0)]
)
def test_steps_or_ratio(text: str, expected: float) -> None:
    steps = read(f"--lr_warmup_steps {text}").lr.lr_warmup_steps
    assert (steps, type(steps)) == (expected, type(expected))


def test_unique_prefixes_the_last_value_and_negative_numbers_are_taken() -> None:
    assert read("--network_di 8").network.network_dim == 8
    assert read("--optimizer_type AdamW --optimizer_type Lion").optimizer.optimizer_type == "Lion"
    assert read("--noise_offset -0.1").loss.noise_offset == -0.1
    assert read("--resolution 512").dataset.resolution == (512, 512)
    assert read("--resolution 512,768").dataset.resolution == (512, 768)


def test_an_empty_text_is_unset_where_unset_is_possible() -> None:
    args = read_train_args(["--vae", "", "--output_name="], require_paths=False)
    assert (args.model.vae, args.save.output_name) == (None, None)


def test_text_encoder_lr_takes_several_and_uses_the_first() -> None:
    args = read("--text_encoder_lr 5e-5 1e-5")
    assert args.optimizer.text_encoder_learning_rate == 5e-5
    assert any("first value" in notice for notice in args.notices)
    assert read("--text_encoder_lr 5e-5").notices == ()
    assert read("").optimizer.text_encoder_learning_rate is None


def test_notices_tell_what_has_no_effect() -> None:
    assert any("no effect" in line for line in read("--noise_offset_random_strength").notices)
    assert read("--noise_offset_random_strength --noise_offset 0.1").notices == ()
    assert any("--v_parameterization" in line for line in read("--zero_terminal_snr").notices)


def test_the_misspelled_extension_wins_and_is_told() -> None:
    args = read("--caption_extension .txt --caption_extention .cap")
    assert args.dataset.caption_extension == ".cap"
    assert args.notices == ("--caption_extention is read as --caption_extension",)


def test_dataset_defaults_carry_the_keys_of_the_file() -> None:
    command = "--train_batch_size 3 --dataset_repeats 2 --resolution 64 --prior_loss_weight 0.5 --caption_extension txt"
    (config,) = dataset_configs(
        {"datasets": [{"subsets": [{"image_dir": "a"}]}]}, "data.toml", read(command).dataset_defaults()
    )
    assert (config.batch_size, config.resolution, config.prior_loss_weight) == (3, (64, 64), 0.5)
    assert (config.subsets[0].num_repeats, config.subsets[0].caption_extension) == (2, ".txt")


def test_config_file_is_typed_flattened_and_overridden(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        "network_dim = 16\nlr_warmup_steps = 0.1\nxformers = true\ncache_latents = false\nsample_every_n_steps = 0\n"
        "resolution = [64, 96]\ntext_encoder_lr = 1e-5\nbase_weights = []\n[any]\nlearning_rate = 1\n"
        'flash_attn = true\noptimizer_args = ["weight_decay=0.1"]\n'
    )
    for name in (str(file), str(file.with_suffix(""))):
        args = read(f"--network_dim 8 --config_file {name}")
        assert (args.network.network_dim, args.lr.lr_warmup_steps, args.dataset.resolution) == (8, 0.1, (64, 96))
        assert (args.optimizer.learning_rate, args.optimizer.text_encoder_lr) == (1.0, (1e-5,))
        assert args.compute.flash_attn
        assert args.optimizer.optimizer_args == ("weight_decay=0.1",)
        assert len(args.notices) == 1


def test_config_file_problems(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        "network_dm = 1\nsave_state = true\nmax_train_steps = 1.5\nflash_attn = 1\nseed = [1]\n[a.b]\nc = 1\n"
    )
    message = problem(f"--config_file {file}")
    assert "network_dm is not a flag that a file may set. Did you mean network_dim?" in message
    assert "save_state: not built yet" in message
    for name in ("max_train_steps 1.5", "flash_attn 1", "seed ['1']", "b is not a flag"):
        assert name in message
    assert "no such file" in problem("--config_file none/at/all")
    file.write_text("a = \n")
    assert "line 1" in problem(f"--config_file {file}")


def test_parse_key_values() -> None:
    assert parse_key_values(["a=1", "b = x=y"], literal=False) == {"a": "1", "b": "x=y"}
    assert parse_key_values(["a=False", "b='c=d'", "c=(1, 2)", "d=0.9,0.99"]) == {
        "a": False, "b": "c=d", "c": (1, 2), "d": (0.9, 0.99),
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"2 problems with --x:\n  --x a: .*\n  --x b=1: b is given twice"):
        parse_key_values(["a", "b=1", "b=1"], flag="--x")
