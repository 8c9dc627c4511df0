"""Text that people wrote, in whatever encoding their editor used: read when that is certain, else refused by name."""

from pathlib import Path

_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""Byte order marks, the longer ones first, and what they say."""
_GUESSES = (("gb18030", "GBK"), ("cp932", "Shift-JIS"), ("cp1252", "Windows-1252"))
"""Encodings that a file may be in without saying so, and what people call them."""
_SHOWN = 24
"""Characters of a guess that are shown."""


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-8, UTF-16 or UTF-32 as its byte order mark says.

    Any other encoding is refused: the same bytes are nearly always text in GBK and in Shift-JIS, and the wrong choice
    would train nonsense. Raises ValueError that names the file and shows how it would read in each; OSError when it
    cannot be read at all.
    """
    with open(path, "rb", buffering=0) as file:  # a buffer costs more than reading such a small file
        data = file.read()
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ValueError(f"{path}: the file begins as {encoding.upper()} and is not: {error.reason}") from None
        raise ValueError(_not_utf8(path, data, error)) from None
    if "\0" in text:
        raise ValueError(
            f"{path}: the file is not text, or UTF-16 without its mark (it has zero bytes); save it as UTF-8"
        )
    return text


def _not_utf8(path: Path, data: bytes, error: UnicodeDecodeError) -> str:
    readings = [f"{name} it would begin {start!r}" for codec, name in _GUESSES if (start := _beginning(data, codec))]
    as_others = f"; as {', as '.join(readings)}" if readings else ""
    return (
        f"{path}: the file is not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start}){as_others}; "
        "save it as UTF-8"
    )


def _beginning(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding).strip()[:_SHOWN]
    except UnicodeDecodeError:
        return None
