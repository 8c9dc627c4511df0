"""The tokenizers of SDXL's two text encoders. No MindSpore."""

from library.data.text.tokenizer import EOS, ClipTokenizer
from library.families.sdxl.facts import TEXT_2_PAD


def sdxl_tokenizers() -> tuple[ClipTokenizer, ClipTokenizer]:
    """Those of CLIP ViT-L, whose captions are filled up with EOS, and of OpenCLIP bigG."""
    return ClipTokenizer(pad_token_id=EOS), ClipTokenizer(pad_token_id=TEXT_2_PAD)
