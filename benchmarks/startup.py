"""Seconds to list the catalog, compared with a bare interpreter and with importing torch or timm.

python benchmarks/startup.py [--rounds 15]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "swag-models list": [str(Path(sys.executable).parent / "swag-models"), "list"],
    "import swag_models; list_models()": [
        sys.executable,
        "-c",
        "import swag_models; swag_models.list_models()",
    ],
    "import torch": [sys.executable, "-c", "import torch"],
    "import timm; timm.list_models()": [sys.executable, "-c", "import timm; timm.list_models()"],
}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(rounds + 1):
        for name, command in COMMANDS.items():
            spent = seconds(command)
            if turn:
                times[name].append(spent)
    bare = statistics.median(times["python -c pass"])
    print("| command | seconds, median (min to max) | above a bare interpreter |\n|---|---|---|")
    for name, spent in times.items():
        middle = statistics.median(spent)
        print(
            f"| `{name}` | {middle:.3f} ({min(spent):.3f} to {max(spent):.3f}) | {middle - bare:.3f} |"
        )


if __name__ == "__main__":
    main()
