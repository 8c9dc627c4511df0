"""Put the tags of text files (as a tagger writes them) into a metadata file for fine-tuning.

python tools/merge_dd_tags_to_metadata.py FOLDER set.json [--caption_extension .txt]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.folder_options import exit_status
from tools.merge_captions_to_metadata import build_parser, merge


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = build_parser(__doc__, ".txt").parse_args(argv)
    return exit_status(lambda: merge(args, "tags"))


if __name__ == "__main__":
    sys.exit(main())
