"""The tokenizers of SDXL's text encoders. No MindSpore."""

from library.data.text.tokenizer import EOS, ClipTokenizer
from library.families.sdxl.facts import TEXT_2_PAD


def sdxl_tokenizers() -> tuple[ClipTokenizer, ClipTokenizer]:
    """Those of text encoder 1 (CLIP ViT-L, filled up with EOS) and 2 (OpenCLIP bigG, filled up with 0)."""
    return ClipTokenizer(pad_token_id=EOS), ClipTokenizer(pad_token_id=TEXT_2_PAD)
