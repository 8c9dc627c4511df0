"""Random streams that depend on the seed and on where they are used, and on nothing else.

A stream is named by (seed, purpose, keys), for example ("caption", epoch, sample). There is no state to save: a resumed
run, another worker count or another device count asks for the same names and gets the same numbers.
"""

import hashlib
import json
import operator
import random

import numpy as np

Key = int | str
"""What may name a stream besides its purpose: whole numbers and text."""


class RunRng:
    """Random streams of one run, named by purpose and keys.

    The name is hashed with BLAKE2b; its digest keys a Philox generator (NumPy) or seeds a `random.Random` (Python).
    Both are defined bit for bit, so the streams are the same in every process and on every platform.
    """

    def __init__(self, seed: int) -> None:
        """`seed`: any whole number; the same seed gives the same run."""
        self.seed = int(seed)

    def _digest(self, purpose: str, keys: tuple[Key, ...]) -> bytes:
        plain = [key if isinstance(key, str) else operator.index(key) for key in keys]
        name = json.dumps([self.seed, purpose, *plain], separators=(",", ":"))
        return hashlib.blake2b(name.encode("ascii"), digest_size=16).digest()

    def key(self, purpose: str, *keys: Key) -> int:
        """A 64-bit number (0 <= key < 2**64), for generators that are not NumPy's or Python's."""
        return int.from_bytes(self._digest(purpose, keys)[:8], "little")

    def python(self, purpose: str, *keys: Key) -> random.Random:
        """A fresh `random.Random` at the start of the named stream."""
        return random.Random(int.from_bytes(self._digest(purpose, keys), "little"))

    def numpy(self, purpose: str, *keys: Key) -> np.random.Generator:
        """A fresh NumPy generator at the start of the named stream."""
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self._digest(purpose, keys), "little")))
