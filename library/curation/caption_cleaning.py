"""Tidies what automatic taggers and captioners write, word for word as the original does.

Texts in, texts out. Tags are separated by a comma and one blank; a tag is compared as a whole.
"""

import re

_UNDERSCORE = re.compile(r"\^_\^|_")  # the face keeps its own
_RATING = ", rating"

_LENGTH = re.compile(r"(?:long|short|medium) hair")
_HAIR = re.compile(r"[\w\-]+ hair")
_ONE_PERSON = (
    _LENGTH,
    re.compile(r"(?:bob|hime) cut"),
    re.compile(r"[\w\-]+ eyes"),
    re.compile(r"[\w\-]+ sleeves|sleeveless"),
    re.compile(
        r"ponytail|braid|ahoge|twintails|sidelocks|two side up|two tails|single (?:hair|side) bun|[\w\-]+ (?:bun|braid)"
    ),
)
"""Kinds of tags that a person has one of: with several persons it is unknown whose the two are."""
_PEOPLE = ("girls", "boys")
_WORD = re.compile(r"[\w\-]+|hair ornament")

_PERSON_WORDS = (
    ("anime anime", "anime"),
    ("young ", ""),
    ("anime girl", "girl"),
    ("cartoon female", "girl"),
    ("cartoon lady", "girl"),
    ("cartoon character", "girl"),
    ("cartoon woman", "girl"),
    ("cartoon women", "girls"),
    ("cartoon girl", "girl"),
    ("anime female", "girl"),
    ("anime lady", "girl"),
    ("anime character", "girl"),
    ("anime woman", "girl"),
    ("anime women", "girls"),
    ("lady", "girl"),
    ("female", "girl"),
    ("woman", "girl"),
    ("women", "girls"),
    ("people", "girls"),
    ("person", "girl"),
)
_PICTURE_WORDS = (
    ("a cartoon figure", "a figure"),
    ("a cartoon image", "an image"),
    ("a cartoon picture", "a picture"),
    ("an anime cartoon image", "an image"),
    ("a cartoon anime drawing", "a drawing"),
    ("a cartoon drawing", "a drawing"),
    ("girl girl", "girl"),
)
CAPTION_WORDS = (*_PERSON_WORDS, *_PICTURE_WORDS)
"""(words, what stands for them), applied one after the other, each until nothing changes. The order matters."""


def clean_tags(tags: str) -> str:
    """Tags with blanks for underscores, without the rating at their end and without those that say nothing.

    Left out are, where a tag speaks of girls or boys, kinds of hair, eyes and sleeves that come more than once, and
    tags that another tag makes more precise (``shirt`` beside ``white shirt``). Source: ``clean_tags`` in kohya's
    finetune/clean_captions_and_tags.py.
    """
    spaced = _UNDERSCORE.sub(lambda found: found[0] if len(found[0]) > 1 else " ", tags)
    found = spaced.partition(_RATING)[0].split(", ")
    if any(people in tag for tag in found for people in _PEOPLE):
        found = _without_contradictions(found)
    return ", ".join(_without_vague(found))


def tags_behind_rating(tags: str) -> str:
    """What `clean_tags` drops because it stands behind the rating; empty when the rating is the last tag."""
    return tags.replace("_", " ").partition(_RATING)[2].partition(", ")[2]


def _without_contradictions(tags: list[str]) -> list[str]:
    for kind in _ONE_PERSON:
        tags = _unless_several(tags, [tag for tag in tags if kind.fullmatch(tag)])
    # one length may be everybody's; colours and styles are somebody's
    return _unless_several(tags, [tag for tag in tags if _HAIR.fullmatch(tag) and not _LENGTH.fullmatch(tag)])


def _unless_several(tags: list[str], found: list[str]) -> list[str]:
    return [tag for tag in tags if tag not in found] if len(found) > 1 else tags


def _without_vague(tags: list[str]) -> list[str]:
    for word in [tag for tag in tags if _WORD.fullmatch(tag)]:
        precise = re.compile(rf"(?:\w+ )+{word}")
        if any(precise.fullmatch(tag) for tag in tags):
            tags = [tag for tag in tags if tag != word]
    return tags


def clean_caption(caption: str) -> str:
    """A caption with one word for every kind of person and without doubled words for drawings.

    Source: ``clean_caption`` in kohya's finetune/clean_captions_and_tags.py.
    """
    for words, instead in CAPTION_WORDS:
        while words in caption:
            caption = caption.replace(words, instead)
    return caption
