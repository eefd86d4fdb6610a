"""CPU time of each step from a table in YFCC100M's format to shards: python benchmarks/yfcc100m.py

CPU time counts, of the processes of a command, and the difference between two sizes, so that neither other work on the machine nor
imports change the rates. img2dataset is measured if it is installed, with a server on this machine."""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from pathlib import Path
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq

from swag_models.recipe.config import Run
from swag_models.recipe.training.decode_rate import make_jpeg, measure_decode_rates
from swag_models.recipe.wordnet import WordNet

BY = "Attribution License"
DIFFERENT_IMAGES = 50


def format_row(
    identifier: str,
    url: str,
    tags: Sequence[str],
    columns: int = 23,
    marker: str = "0",
    number: int = 0,
) -> str:
    """A row of YFCC100M's table: 23 columns, with a hash 24, with a line number 25."""
    start = (
        [str(number)] * (columns > 24) + [identifier] + [f"{int(identifier):032x}"] * (columns > 23)
    )
    photo = [
        "39019111@N00",
        "a%20name",
        "2012-02-16 09:56:37.0",
        "1331840483",
        "Canon+PowerShot",
        "IMG+0520",
        "A+caf%C3%A9+%26+more",
    ]
    texts = [",".join(map(quote_plus, tags)), "geo:lat=1", "-81.8", "24.5", "12"]
    links = [
        f"http://www.flickr.com/photos/1/{identifier}/",
        url,
        quote_plus(BY),
        "http://creativecommons.org/licenses/by/2.0/",
    ]
    return "\t".join(
        [*start, *photo, *texts, *links, "6", "7", "secret", "original", "jpg", marker]
    )


def write_table(path: Path, rows: Iterable[str]) -> None:
    with path.open("w") as file:
        file.writelines(f"{row}\n" for row in rows)


def serve(folder: Path) -> ThreadingHTTPServer:
    """Serve the files of a folder on a free port of this machine, until `shutdown`."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def count_cpu(*command: str) -> float:
    """CPU seconds of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_rate(sizes: tuple[int, int], run: Callable[[int], float]) -> float:
    small, large = map(run, sizes)
    return (sizes[1] - sizes[0]) / (large - small)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400_000, help="rows of the larger table")
    parser.add_argument("--images", type=int, default=2_000, help="images of the larger folder")
    options = parser.parse_args()
    command = (sys.executable, "-m", "swag_models", "recipe")
    draw = random.Random(0)
    lemmas = sorted({lemma.replace("_", " ") for lemma in WordNet.load().senses})
    draw.shuffle(lemmas)
    weights = [1 / rank for rank in range(1, len(lemmas) + 1)]
    cumulated = list(accumulate(weights))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        def curate(rows: int) -> float:
            table = root / f"yfcc100m_dataset-{rows}"
            choose = partial(draw.choices, lemmas, cum_weights=cumulated)
            write_table(
                table,
                (
                    format_row(
                        str(10**9 + n), f"http://farm8.a.test/{n}.jpg", choose(k=draw.randrange(12))
                    )
                    for n in range(rows)
                ),
            )
            print(
                f"{rows:,} rows: {table.stat().st_size / rows:.0f} bytes per row", file=sys.stderr
            )
            curated = root / f"curated-{rows}"
            seconds = count_cpu(*command, "curate", str(table), "-o", str(curated), "--quiet")
            labels = pq.read_metadata(curated / "labels.parquet").num_rows
            names = ("labels.parquet", "urls.parquet")
            size = sum((curated / name).stat().st_size for name in names) / labels
            print(f"labels and URLs: {size:.0f} bytes per labelled image", file=sys.stderr)
            return seconds

        print("| step | per core and second |\n|---|---|")
        print(
            f"| curate | {measure_rate((options.rows // 4, options.rows), curate):,.0f} rows |",
            flush=True,
        )

        (root / "served").mkdir()
        for number in range(DIFFERENT_IMAGES):
            (root / "served" / f"{number}.jpg").write_bytes(make_jpeg(500, 375))
        server = serve(root / "served")

        def download(images: int) -> float:
            urls = [
                f"http://127.0.0.1:{server.server_port}/{number % DIFFERENT_IMAGES}.jpg?{number}"
                for number in range(images)
            ]
            pq.write_table(
                pa.table({"id": [str(number) for number in range(images)], "url": urls}),
                root / "urls.parquet",
            )
            options = "--input_format parquet --url_col url --image_size 256 --resize_mode keep_ratio --resize_only_if_bigger True"
            options += ' --save_additional_columns ["id"] --output_format webdataset --processes_count 1 --thread_count 16'
            names = (
                "--url_list",
                str(root / "urls.parquet"),
                "--output_folder",
                str(root / f"images-{images}"),
            )
            seconds = count_cpu("img2dataset", *names, *options.split())
            tars = (root / f"images-{images}").glob("*.tar")
            size = sum(path.stat().st_size for path in tars) / images
            print(f"downloaded: {size:,.0f} bytes per image, with its record", file=sys.stderr)
            return seconds

        if shutil.which("img2dataset"):
            print(
                f"| img2dataset, 500 x 375 pixels to 341 x 256 | {measure_rate((options.images // 4, options.images), download):,.0f} images |",
                flush=True,
            )
        server.shutdown()

        def pack(images: int) -> float:
            images_folder, labels = root / f"loose-{images}", root / f"labels-{images}.parquet"
            images_folder.mkdir()
            contents = [make_jpeg(341, 256) for _ in range(DIFFERENT_IMAGES)]
            for number in range(images):
                (images_folder / f"{number}.jpg").write_bytes(contents[number % DIFFERENT_IMAGES])
            ids = [str(number) for number in range(images)]
            pq.write_table(
                pa.table({"id": ids, "classes": [[0]] * images, "repeat": [1.0] * images}), labels
            )
            print(
                f"341 x 256 pixels: {sum(map(len, contents)) / DIFFERENT_IMAGES:,.0f} bytes",
                file=sys.stderr,
            )
            arguments = (
                "--labels",
                str(labels),
                "--images",
                str(images_folder),
                "-o",
                str(root / f"shards-{images}"),
            )
            return count_cpu(*command, "pack", *arguments, "--processes", "1", "--quiet")

        print(
            f"| pack, 341 x 256 pixels | {measure_rate((options.images // 4, options.images), pack):,.0f} images |"
        )
        run = Run(arch="vit_b16", image_size=224, batch_size=1, steps=1)
        for name, rate in measure_decode_rates(run).items():
            print(f"| decode for training, {name} pixels | {rate:,.0f} images |")


if __name__ == "__main__":
    main()
