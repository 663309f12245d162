"""Run one of timm's own scripts, or any other, with our models registered.

timm's ``train.py`` finds them by ``--device-modules covpool_plugins``; its other scripts have no such option. The timm
that lies beside the script, as in a checkout, goes before the installed one.
"""

from __future__ import annotations

import argparse
import importlib
import runpy
import signal
import sys
from pathlib import Path
from typing import NoReturn

# Only the standard library above: importing the package imports timm, which may have to come from the script's folder.

EXAMPLE = """examples:
  python tools/run_timm.py ../pytorch-image-models/validate.py --data-dir data/imagenet --model resnet50_svdpade \\
      --checkpoint output/train/imagenet_resnet50_svdpade/model_best.pth.tar
  torchrun --nproc-per-node 8 tools/run_timm.py ../pytorch-image-models/train.py \\
      -c configs/timm/imagenet_resnet50_svdpade.yaml --data-dir data/imagenet --batch-size 32"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; that of the package is out of reach here."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", metavar="SCRIPT.py", help="validate.py, inference.py, benchmark.py, train.py, ...")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="everything else is the script's")
    own, misplaced = parser.parse_known_args(argv)
    if misplaced:
        parser.error(f"the script comes first, then its arguments; got {misplaced[0]} before {own.script}")
    script = Path(own.script)
    if not script.is_file():
        parser.error(f"{script}: {'is a folder; name a script in it' if script.is_dir() else 'no such file'}")

    _replace_own_folder(str(script.resolve().parent))
    path = str(script.absolute())
    sys.argv = [path, *own.arguments]
    on_interruption = signal.getsignal(signal.SIGINT)
    try:
        importlib.import_module("covpool_plugins")
    except ImportError as error:
        parser.error(f"the plugin cannot be imported: {' '.join(str(error).split())}")
    signal.signal(signal.SIGINT, on_interruption)  # the script's own, after what the package does while it is imported
    runpy.run_path(path, run_name="__main__")


def _replace_own_folder(folder: str) -> None:
    """Do what ``python SCRIPT`` does with ``sys.path``; under ``python -P`` the own folder is not there."""
    own = str(Path(__file__).resolve().parent)
    if sys.path and sys.path[0] and str(Path(sys.path[0]).resolve()) == own:
        sys.path[0] = folder
    else:
        sys.path.insert(0, folder)


if __name__ == "__main__":
    main()
