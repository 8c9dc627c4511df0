"""The command line of sdxl_train_network.py: every flag of the original is honoured, mapped or refused."""

import argparse
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from library.settings.did_you_mean import did_you_mean
from library.settings.flag_checks import conflicts, missing, notes
from library.settings.flag_groups import (
    CacheArgs,
    ComputeArgs,
    DatasetArgs,
    LossArgs,
    LrArgs,
    ModelArgs,
    ModelSpecArgs,
    NetworkArgs,
    OptimizerArgs,
    RunArgs,
    SaveArgs,
)
from library.settings.flags import Flag, Raw, add_flag, flags_of
from library.settings.kohya_flags import ALIASES, MAPPED, NO_MEANING, NOT_BUILT, REFUSED_VALUES, means_off, refusal
from library.settings.problems import UsageError, raise_if_any
from library.settings.table_file import read_table

DATASET_KEYS: Mapping[str, str] = MappingProxyType({"train_batch_size": "batch_size", "dataset_repeats": "num_repeats"})
"""Flags whose key in the dataset file has another name."""

SOURCES = ("dataset_config", "train_data_dir", "reg_data_dir", "in_json")
"""Flags that say where the pictures are."""
NO_KEYS = (*SOURCES, "max_data_loader_n_workers", "skip_bad_images", "weighted_captions")
"""Flags of the group that are no fallbacks for keys of the dataset file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """All flags of one run, by group."""

    model: ModelArgs
    dataset: DatasetArgs
    cache: CacheArgs
    network: NetworkArgs
    optimizer: OptimizerArgs
    lr: LrArgs
    loss: LossArgs
    compute: ComputeArgs
    run: RunArgs
    save: SaveArgs
    metadata: ModelSpecArgs
    notices: tuple[str, ...] = ()
    """Lines for the log: flags that were mapped to something else or have no effect."""

    def dataset_defaults(self) -> dict[str, object]:
        """The command line's fallbacks for the dataset file, under the names of the file's keys."""
        given = {name: value for name, value in vars(self.dataset).items() if name not in NO_KEYS}
        fallbacks = {DATASET_KEYS.get(name, name): value for name, value in given.items()}
        return fallbacks | {"prior_loss_weight": self.loss.prior_loss_weight}

    def dataset_sources(self) -> dict[str, Any]:
        """What says where the pictures are, for folder_form.run_dataset_configs."""
        return {name: getattr(self.dataset, name) for name in SOURCES} | {"masked_loss": self.loss.masked_loss}


GROUPS: Mapping[str, type] = MappingProxyType({
    name: hint for name, hint in typing.get_type_hints(TrainArgs).items() if isinstance(hint, type)
})  # fmt: skip
FLAGS: Mapping[str, Flag] = MappingProxyType({flag.name: flag for group in GROUPS.values() for flag in flags_of(group)})
KNOWN = (*FLAGS, *ALIASES, *MAPPED, *NOT_BUILT, *NO_MEANING)
"""Every flag by name: built, other spellings, mapped, refused."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse_train_args(argv: Sequence[str] | None = None, *, require_paths: bool = True) -> TrainArgs:
    """Read the command line; on any problem print all of them to stderr and exit with code 2.

    `argv` is sys.argv[1:] when None. Without `require_paths` base model, dataset, network and output may be absent.
    """
    parser = build_parser()
    try:
        return _read(parser, argv, require_paths)
    except UsageError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\nAll flags: {parser.prog} --help\n")


def read_train_args(argv: Sequence[str] | None = None, *, require_paths: bool = True) -> TrainArgs:
    """Like parse_train_args, but raise UsageError (a ValueError) that lists every problem."""
    return _read(build_parser(), argv, require_paths)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser from the flag groups and the tables of the original's other flags.

    It only splits the command line into texts; unique prefixes of flags are taken, as in the original.
    """
    refused = [*NOT_BUILT, *NO_MEANING]
    parser = _Parser(
        usage="%(prog)s [--flag value] ...",
        description="Train a network such as a LoRA for Stable Diffusion XL.",
        epilog="Known, and refused with the reason when given: " + ", ".join(refused) + ".",
    )
    for name, group in GROUPS.items():
        section = parser.add_argument_group(name, group.__doc__)
        for flag in flags_of(group):
            add_flag(section, flag)
    section = parser.add_argument_group("accepted for old command lines", "each is answered with one line in the log")
    for name, (takes, line) in MAPPED.items():
        _add_text(section, name, takes, line)
    for name, meant in ALIASES.items():
        _add_text(section, name, "VALUE", f"another spelling of --{meant}")
    for name in refused:
        _add_text(section, name, (NOT_BUILT.get(name) or NO_MEANING[name])[0], argparse.SUPPRESS)
    return parser


def _add_text(section: "argparse._ArgumentGroup", name: str, takes: str, text: str) -> None:
    if takes:
        nargs = "*" if takes == "VALUES" else None
        section.add_argument(f"--{name}", nargs=nargs, metavar=takes, default=argparse.SUPPRESS, help=text)
    else:
        section.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text)


def _read(parser: argparse.ArgumentParser, argv: Sequence[str] | None, require_paths: bool) -> TrainArgs:
    namespace, extra = parser.parse_known_args(argv)
    given: dict[str, Raw] = vars(namespace)
    intake = _Intake()
    intake.problems += _strangers(extra)
    if isinstance(file := given.get("config_file"), str):
        intake.take(_file_entries(file, intake.problems), f"{file}: ")
    intake.take(given, "--")
    values, problems = intake.values, intake.problems
    if not problems:  # a flag that could not be read would be missed by others that need it
        problems += conflicts(values)
    if require_paths:
        problems += missing(values)
    raise_if_any(problems, "the command line")
    groups: dict[str, Any] = {
        name: group(**{flag.name: values[flag.name] for flag in flags_of(group)}) for name, group in GROUPS.items()
    }
    return TrainArgs(**groups, notices=tuple(dict.fromkeys([*intake.notices, *notes(values)])))


class _Intake:
    """Types what was given; collects every flag's value, the lines for the log, and the problems."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {name: flag.default for name, flag in FLAGS.items()}
        self.notices: list[str] = []
        self.problems: list[str] = []

    def take(self, given: Mapping[str, Raw], label: str) -> None:
        """Read the given texts; `label` stands before a flag's name in messages."""
        for name, raw in given.items():
            if why := refusal(name):
                if not means_off(raw):
                    self.problems.append(f"{label}{name}: {why}")
            elif name in MAPPED:
                if raw is not False:
                    self.notices.append(f"{label}{name}: {MAPPED[name][1]}")
            else:
                self._take_built(name, raw, label)

    def _take_built(self, name: str, raw: Raw, label: str) -> None:
        meant = ALIASES.get(name, name)
        if meant != name:
            self.notices.append(f"{label}{name} is read as --{meant}")
        if why := REFUSED_VALUES.get((meant, str(raw))):
            self.problems.append(f"{label}{name} {raw}: {why}")
            return
        try:
            self.values[meant] = FLAGS[meant].read(raw, f"{label}{name}")
        except ValueError as error:
            self.problems.append(str(error))


def _strangers(extra: Sequence[str]) -> list[str]:
    """Complain about what argparse could not place: unknown flags, or else values that follow no flag."""
    known = [f"--{name}" for name in KNOWN]
    names = [text.partition("=")[0] for text in extra if text.startswith("-")]
    if names:  # the values left over are theirs
        return [f"{name} is not a flag.{did_you_mean(name, known)}" for name in names]
    return [f"{text}: belongs to no flag; switches take no value, and texts with blanks need quotes" for text in extra]


def _file_entries(path: str, problems: list[str]) -> dict[str, Raw]:
    """Read the flags in a --config_file. Tables are flattened one level; .toml may be left out of the name."""
    table = read_table(path if path.endswith(".toml") else f"{path}.toml", (".toml",))
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    entries: dict[str, Raw] = {}
    for key, value in flat.items():
        if key not in KNOWN or key == "config_file":
            problems.append(f"{path}: {key} is not a flag that a file may set.{did_you_mean(key, KNOWN)}")
        elif isinstance(value, dict):
            problems.append(f"{path}: {key} is a table inside a table; allowed is one level of tables")
        else:
            entries[key] = _as_text(value)
    return entries


def _as_text(value: object) -> Raw:
    """Give a TOML value the form that the command line would have given it, so that one reader serves both."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return value if isinstance(value, bool) else str(value)


__all__ = [
    "CacheArgs",
    "ComputeArgs",
    "DatasetArgs",
    "LossArgs",
    "LrArgs",
    "ModelArgs",
    "ModelSpecArgs",
    "NetworkArgs",
    "OptimizerArgs",
    "RunArgs",
    "SaveArgs",
    "TrainArgs",
    "UsageError",
    "build_parser",
    "parse_train_args",
    "read_train_args",
]
