"""Runs a command with the stand-in for a GPU: `python tests/standin/run.py [--order ORDER] [--seed N] [COMMAND ...]`.

Without a command: pytest, with the tests on "cuda" and those of this folder.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from build import CannotBuild, build, installed_cupy

from tinyfcn.environment import cache_folder

FOLDER = Path(__file__).resolve().parent
TESTS = FOLDER.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--order", choices=("eager", "lazy", "random"), default="lazy", help="when queued work runs")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="such as: -- pytest tests/kernels/test_relu.py")
    options = parser.parse_args()
    folder = cache_folder() / "standin"
    start = time.perf_counter()
    try:
        build(folder)
    except (CannotBuild, OSError) as error:
        print(f"the stand-in cannot be built: {error}", file=sys.stderr)
        return 2
    print(
        f"stand-in: built or found in {folder} in {time.perf_counter() - start:.0f} s, "
        f"order {options.order}, seed {options.seed}"
    )
    command = [word for word in options.command if word != "--"] or ["pytest", str(TESTS)]
    if command[0] == "pytest":
        command[1:1] = ["-p", "standin.plugin"]
    version, cuda = installed_cupy()
    environment = os.environ | {
        "STANDIN_MODULE": str(folder / f"runtime-{version}-cuda{cuda}.so"),
        "STANDIN_ORDER": options.order,
        "STANDIN_SEED": str(options.seed),
        "OPENBLAS_NUM_THREADS": "1",
        "CUPY_CACHE_DIR": os.environ.get("CUPY_CACHE_DIR", str(folder / "kernels")),
        "PYTHONPATH": os.pathsep.join(map(str, (TESTS, FOLDER / "site"))),
    }
    return subprocess.run([sys.executable, "-m", *command], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
