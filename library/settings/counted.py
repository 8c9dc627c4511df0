"""A number with the words that go with it."""


def counted(number: int, one: str, many: str = "") -> str:
    """`1 image` or `3 images`; `many` where that is not `one` with an s: `image has`, `images have`."""
    return f"{number} {one if number == 1 else many or one + 's'}"
