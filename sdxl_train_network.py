"""Train a network (a LoRA) for Stable Diffusion XL; the command line is that of kohya's script of the same name."""

import logging
import os
import sys

from library.device.large_pages import restart_with_large_pages
from library.runs.interrupt import INTERRUPTED
from library.settings.arguments import parse_train_args
from library.settings.log_setup import setup_logging

logger = logging.getLogger("sdxl_train_network")


def main() -> None:
    """Parse the command line and train; an error is one message and exit code 1."""
    args = parse_train_args()
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings speak to its own developers; its errors are shown
    setup_logging(args.run)
    for notice in args.notices:
        logger.info(notice)
    # imported late, so that --help and a wrong flag answer at once
    from library.families.sdxl.family import SdxlFamily
    from library.runs.train_network import train_network

    try:
        train_network(args, SdxlFamily(args.model.te2_projection))
    except ValueError as error:
        logger.debug("where it came from", exc_info=True)
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"\ninterrupted {interrupt}".rstrip() + "\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    restart_with_large_pages()
    main()
