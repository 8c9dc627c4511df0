"""Networks by name and by file: which kind, which layers, which learning rates."""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

import networks
from library.data.run_rng import RunRng
from library.device.mindspore_ckpt import load_ckpt
from library.files.safetensors_utils import SafetensorsFile
from library.graphs.layer_target import LayerTarget
from library.settings.flag_groups import NetworkArgs, OptimizerArgs
from library.settings.key_values import parse_key_values
from library.training.trained import Group, GroupOf
from networks.network_base import PREFIX, TEXT_PARTS, Network, Tensors

NETWORK_PACKAGE = "networks."


def import_network_module(name: str) -> ModuleType:
    """The module of --network_module.

    Raises:
        ValueError: there is no such module, or it is no network type.
    """
    built = ", ".join(NETWORK_PACKAGE + each for each in _kinds())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"--network_module {name}: {error}. Built so far: {built}") from error
    if not name.startswith(NETWORK_PACKAGE) or "create_network" not in vars(module):
        raise ValueError(f"--network_module {name} is not a network type (it has no create_network). Use {built}")
    return module


def _kinds() -> dict[str, ModuleType]:
    """Name -> module of every network type in the folder ``networks``."""
    modules = {each.name: importlib.import_module(NETWORK_PACKAGE + each.name) for each in _modules()}
    return {name: module for name, module in modules.items() if "create_network" in vars(module)}


def _modules() -> Iterable[pkgutil.ModuleInfo]:
    return pkgutil.iter_modules(networks.__path__)


def chosen_targets(targets: Sequence[LayerTarget], options: NetworkArgs) -> list[LayerTarget]:
    """The layers whose network is trained, by --network_train_unet_only and --network_train_text_encoder_only."""
    if options.network_train_unet_only:
        return [target for target in targets if target.part not in TEXT_PARTS]
    if options.network_train_text_encoder_only:
        return [target for target in targets if target.part in TEXT_PARTS]
    return list(targets)


def create_network(module: ModuleType, targets: Sequence[LayerTarget], options: NetworkArgs, rng: RunRng) -> Network:
    """A network by the flags, on from --network_weights where given.

    Raises:
        ValueError: a network argument is wrong, or the weights do not fit the network.
    """
    network: Network = module.create_network(
        chosen_targets(targets, options),
        network_dim=options.network_dim,
        network_alpha=options.network_alpha,
        network_dropout=options.network_dropout,
        network_args=parse_key_values(options.network_args, literal=False, flag="--network_args"),
        generator_of=lambda name: rng.numpy("network init", name),
    )
    if options.network_weights:
        network.load(read_network_file(Path(options.network_weights)), options.network_weights)
    return network


def open_network(path: Path, targets: Sequence[LayerTarget]) -> Network:
    """The network of a file, of whatever kind its tensors are.

    Raises:
        ValueError: no such file, not a whole one, of no known kind, or for another base model.
    """
    state = read_network_file(path)
    for module in _kinds().values():
        if module.recognises(state):
            network: Network = module.create_network_from_weights(targets, state, str(path))
            return network
    raise ValueError(
        f"{path}: its tensors ({', '.join(sorted(state)[:3])}, ...) are of none of the kinds {', '.join(_kinds())}"
    )


def read_network_file(path: Path) -> Tensors:
    """All tensors of a network's file in float32: safetensors, or MindSpore's .ckpt.

    Raises:
        ValueError: no such file, one that is not whole, or one with none of a network's keys.
    """
    if not path.is_file():
        raise ValueError(f"no such network file: {path}")
    if path.suffix == ".ckpt":
        state = load_ckpt(path)[0]
    else:
        with SafetensorsFile(path) as file:
            state = {key: file.read(key, np.float32) for key in file}
    if not any(key.startswith(PREFIX) for key in state):
        raise ValueError(
            f"{path}: none of its {len(state)} keys begins with {PREFIX} (it has {', '.join(sorted(state)[:3])}, ...); "
            "give a LoRA file as kohya's trainers write it"
        )
    return state


def part_rates(options: OptimizerArgs, parts: Iterable[str]) -> dict[str, float]:
    """Learning rate of each part, by --learning_rate, --unet_lr and --text_encoder_lr.

    Raises:
        ValueError: every rate is 0, so nothing would be trained.
    """
    unet = options.learning_rate if options.unet_lr is None else options.unet_lr
    text = options.text_encoder_learning_rate
    text = options.learning_rate if text is None else text
    rates = {part: text if part in TEXT_PARTS else unet for part in parts}
    if not any(rates.values()):
        raise ValueError("every learning rate is 0: nothing would be trained. Set --learning_rate, or --unet_lr")
    return rates


def group_of(network: Network, rates: Mapping[str, float]) -> GroupOf:
    """The parameter group of each tensor of a network, named as kohya does: ``unet``, ``unet_block8 plus``.

    Args:
        network: the network; it knows LoRA+ ratios and the blocks' factors.
        rates: learning rate of each part.
    """

    def group(key: str) -> Group:
        name, _, suffix = key.partition(".")
        layer = network.layers[name]
        part = layer.target.part
        title, rate = "textencoder" if part in TEXT_PARTS else part, rates[part]
        if layer.lr_weight is not None:
            title, rate = f"{title}_block{layer.target.block}", rate * layer.lr_weight
        if suffix in layer.adapter.plus() and part in network.plus_ratios:
            title, rate = f"{title} plus", rate * network.plus_ratios[part]
        return Group(title, rate)

    return group
