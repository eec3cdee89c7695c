"""``python -m workbench.docs [folder] [--execute smoke|quick|full]``: write the pages and say where they are."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tracking.errors import UserError
from workbench.docs.build import build
from workbench.study import PROFILES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m workbench.docs", description="Write the project's pages.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/docs"))
    parser.add_argument("--execute", choices=PROFILES, help="first execute the studies that were never executed, at this profile")
    args = parser.parse_args()
    try:
        print(f"Pages: {build(args.folder, execute=args.execute).absolute().as_uri()}")
    except UserError as error:
        print(f"docs: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
