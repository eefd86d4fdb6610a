"""Time to sign and to verify a model, compared with hashing its files with SHA-256.

    python benchmarks/sign.py [--size 2500] [--files 1 4] [--rounds 5]

Random files are written into a temporary folder. These alternate: hashing each file with
`hashlib.file_digest`, one after the other; signing the folder; signing it as `publish.save` does,
which has hashed the weights already for config.json; and verifying the folder. The files are in the
page cache.
"""

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from swag_models.formatting import markdown_table
from swag_models.hub.signed_folder import verify_folder
from swag_models.publish.signing import write_signature

MIB = 1 << 20


def make_files(folder: Path, size: int, count: int) -> list[Path]:
    """Write `count` random files of `size` MiB in total."""
    folder.mkdir()
    paths = [folder / f"model-{number:05d}.safetensors" for number in range(count)]
    for path in paths:
        with path.open("wb") as file:
            for _ in range(size // count):
                file.write(os.urandom(MIB))
    return paths


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(
    folder: Path, paths: list[Path], key: ec.EllipticCurvePrivateKey, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each way in each round."""
    digests = {path.name: hash_file(path) for path in paths}
    ways: dict[str, Callable[[], object]] = {
        "hash": lambda: [hash_file(path) for path in paths],
        "sign": lambda: write_signature(folder, key),
        "sign in save": lambda: write_signature(folder, key, digests),
        "verify": lambda: verify_folder(folder, key.public_key()),
    }
    for run in ways.values():  # imports
        run()
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            times[way].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=2500, help="MiB in total")
    parser.add_argument("--files", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    key = ec.generate_private_key(ec.SECP256R1())
    rows = []
    for count in options.files:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "model"
            times = measure(folder, make_files(folder, options.size, count), key, options.rounds)
        for label, choose in (("median", statistics.median), ("fastest", min)):
            hashing, *others = map(choose, times.values())
            sign, save, verify = (value / hashing for value in others)
            ratios = (sign, save, verify, (sign + verify) / 2, save + verify)
            rows.append((count, label, f"{hashing:.3f}", *(f"{ratio:.2f}" for ratio in ratios)))
    header = ("files", "of the rounds", "hash, s", "sign / hash", "sign in save / hash")
    sums = ("verify / hash", "(sign + verify) / hashing twice", "(sign in save + verify) / hash")
    print(markdown_table((*header, *sums), rows))


if __name__ == "__main__":
    main()
