"""The listings in docs/compiler.md are what is written today."""

import re
import textwrap
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import pytest

from library.device.profile import CPU, Device
from library.graphs.graph_code import GraphFunction
from library.graphs.program import Program
from tests.parity.block_kinds import EXAMPLES

pytestmark = pytest.mark.usefixtures("device")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compiler.md"


def gradient(name: str, trained: tuple[str, ...], keep: bool) -> GraphFunction:
    """Of the block's first input and of trained weights."""
    kind = replace(EXAMPLES[name].kind(ms.float32), adapters=(), trained=trained)
    function = Program(kind, Device(CPU))._gradient(EXAMPLES[name].outlines(ms.float32), (0,), keep).function
    assert isinstance(function, GraphFunction)
    return function


def forward(name: str) -> GraphFunction:
    kind = replace(EXAMPLES[name].kind(ms.float32), adapters=(), trained=())
    traced = Program(kind, Device(CPU))._trace(EXAMPLES[name].outlines(ms.float32), known=False)
    return GraphFunction(traced.trace, (*traced.inputs, *traced.others), (traced.output,), compiled=False)


def listings() -> dict[str, str]:
    functions = {
        "forward": forward("upsample"),
        "gradient of everything": gradient("upsample", ("conv.weight", "conv.bias"), keep=False),
        "gradient of the image": gradient("upsample", (), keep=False),
        "gradient that computes again": gradient("embed_time", (), keep=False),
        "gradient that is given what was kept": gradient("embed_time", (), keep=True),
    }
    return {name: re.sub(r"graph_\d+", "graph", function.source) for name, function in functions.items()}


def test_listings_are_what_is_written_today() -> None:
    found = dict(re.findall(r"<!-- (.+?) -->\n```python\n(.*?)```", PAGE.read_text(encoding="ascii"), re.DOTALL))
    assert found == listings()


@pytest.mark.parametrize(("start", "file"), [("def upsample", "models/unet.py"), ("def exp", "graphs/operations.py")])
def test_functions_are_those_of_the_library(start: str, file: str) -> None:
    source = (PAGE.parents[1] / "library" / file).read_text(encoding="ascii")
    shown = re.search(rf"```python\n( *{start}.*?)```", PAGE.read_text(encoding="ascii"), re.DOTALL)
    assert shown and textwrap.dedent(shown.group(1)).strip() in source
