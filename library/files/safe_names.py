"""Names that come from somebody else's data: used inside one folder, or refused."""

MAX_PART_BYTES = 200
"""Most file systems allow 255; the rest is for endings."""
_FORBIDDEN = '\\:*?"<>|'


def safe_relative_name(name: str) -> str:
    """`name` as it is, when it is a path that stays inside the folder it is put into on every system.

    Raises ValueError saying what is wrong: absolute, upwards, drives, backslashes, control characters, too long.
    """
    reasons = []
    if not name.isprintable() or not _is_utf8(name):
        reasons.append("it has characters that are not printable")
    if any(character in name for character in _FORBIDDEN):
        reasons.append(f"it has one of {' '.join(_FORBIDDEN)}")
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        reasons.append("it is empty, absolute or leads out of the folder")
    if any(part.startswith(".") and part.strip(".") for part in parts):
        reasons.append("it begins with a dot")
    if any(part != part.strip() for part in parts):
        reasons.append("it begins or ends with a blank")
    if any(len(part.encode(errors="replace")) > MAX_PART_BYTES for part in parts):
        reasons.append(f"it is longer than {MAX_PART_BYTES} bytes")
    if reasons:
        raise ValueError(f"the name {name!r} is refused: {', '.join(reasons)}")
    return name


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
