"""Two small languages inside prompts: sample lines with options (`a cat --w 768`) and weights (`(cat:1.3)`)."""

import logging
import re
from collections.abc import Callable
from types import MappingProxyType

logger = logging.getLogger(__name__)


def _steps(text: str) -> int:
    return max(1, min(1000, int(text)))


# option: (key of the result, pattern of its value, conversion); matched in kohya's order
_OPTIONS: MappingProxyType[str, tuple[str, str, Callable[[str], object]]] = MappingProxyType(
    {
        "w": ("width", r"\d+", int),
        "h": ("height", r"\d+", int),
        "d": ("seed", r"\d+", int),
        "s": ("sample_steps", r"\d+", _steps),
        "l": ("scale", r"[\d.]+", float),
        "g": ("guidance_scale", r"[\d.]+", float),
        "n": ("negative_prompt", r".+", str),
        "ss": ("sample_sampler", r".+", str),
        "cn": ("controlnet_image", r".+", str),
        "ctr": ("cfg_trunc_ratio", r".+", float),
        "rcfg": ("renorm_cfg", r".+", float),
        "fs": ("flow_shift", r".+", str),
    }
)


def line_to_prompt_dict(line: str) -> dict[str, object]:
    """The prompt and its options from one line such as `a cat --w 768 --n blurry --d 1`.

    Parts are separated by " --"; names are case-insensitive; a number may be followed by anything. The first part is
    the prompt, and like the original's it is also looked at as an option. A part that is no option, or whose value is
    no number, is left out with a warning in the log. Source: kohya's function of the same name.
    """
    parts = line.split(" --")
    result: dict[str, object] = {"prompt": parts[0]}
    for position, part in enumerate(parts):
        name, _, rest = part.partition(" ")
        option = _OPTIONS.get(name.lower())
        value = re.match(option[1], rest) if option is not None else None
        if option is not None and value is not None:
            try:
                result[option[0]] = option[2](value.group(0))
                continue
            except ValueError:
                pass
        if position > 0:
            logger.warning("prompt line %r: --%s is not an option with a usable value and is left out", line, part)
    return result


_TOKEN = re.compile(
    r"""
    \\[()\[\]\\]            # escaped bracket or backslash
    | \\                    # lone backslash
    | [(\[]                 # opening bracket
    | :[+-]?[.\d]+\)        # explicit weight and closing bracket
    | [)\]]                 # closing bracket
    | [^\\()\[\]:]+         # plain text
    | :                     # lone colon
    """,
    re.VERBOSE,
)
_ROUND_FACTOR = 1.1
_SQUARE_FACTOR = 1 / 1.1


class _WeightedPieces:
    """Pieces of text, each with the product of the weights around it."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, float]] = []

    def add(self, text: str) -> None:
        self.pieces.append((text, 1.0))

    def scale_from(self, start: int, factor: float) -> None:
        self.pieces[start:] = [(text, weight * factor) for text, weight in self.pieces[start:]]

    def merged(self) -> list[tuple[str, float]]:
        """Neighbours of equal weight joined; one empty piece when there is none."""
        result: list[tuple[str, float]] = []
        for text, weight in self.pieces or [("", 1.0)]:
            if result and result[-1][1] == weight:
                text = result.pop()[0] + text
            result.append((text, weight))
        return result


def parse_prompt_attention(prompt: str) -> list[tuple[str, float]]:
    r"""Text pieces with their weights, in AUTOMATIC1111's syntax.

    `(x)` multiplies by 1.1, `[x]` divides by 1.1, `(x:1.3)` multiplies by 1.3, brackets nest, `\(` is a literal
    bracket; brackets never closed count as closed at the end, surplus closing ones are text.
    Raises ValueError for an explicit weight that is not a number, such as `(x:1.2.3)`.
    """
    pieces = _WeightedPieces()
    round_starts: list[int] = []
    square_starts: list[int] = []
    for match in _TOKEN.finditer(prompt):
        token = match.group(0)
        if token.startswith("\\"):
            pieces.add(token[1:])
        elif token == "(":
            round_starts.append(len(pieces.pieces))
        elif token == "[":
            square_starts.append(len(pieces.pieces))
        elif token.startswith(":") and len(token) > 1 and round_starts:
            pieces.scale_from(round_starts.pop(), _weight(token[1:-1], prompt))
        elif token == ")" and round_starts:
            pieces.scale_from(round_starts.pop(), _ROUND_FACTOR)
        elif token == "]" and square_starts:
            pieces.scale_from(square_starts.pop(), _SQUARE_FACTOR)
        else:
            pieces.add(token)
    for start in round_starts:
        pieces.scale_from(start, _ROUND_FACTOR)
    for start in square_starts:
        pieces.scale_from(start, _SQUARE_FACTOR)
    return pieces.merged()


def _weight(text: str, prompt: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"prompt {prompt!r}: the weight {text!r} is not a number; write for example (x:1.2)") from None
