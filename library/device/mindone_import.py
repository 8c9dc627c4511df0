"""Reach mindone's classes: on a CPU with the missing kernels supplied, and without its chatter on the console."""

import contextlib
import importlib
import io
import os
import warnings
from typing import Any

from library.device import mint_cpu


def diffusers_class(name: str) -> Any:
    """The class ``mindone.diffusers.<name>``.

    The first call takes about 4 s, because mindone imports all of its models; call it when the class is needed, not
    at the top of a file. What mindone prints while it is imported (missing PyTorch, unknown documentation entries,
    deprecations of its own) is of no use to a user and is dropped; errors are raised as they are.

    Raises:
        ValueError: mindone is not installed.
    """
    mint_cpu.install()
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return getattr(importlib.import_module("mindone.diffusers"), name)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{error}; the VAE and the samplers need mindone: pip install -r requirements.txt"
            ) from error
