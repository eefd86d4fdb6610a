"""A stand-in for img2dataset 1.47: downloads images and writes them in its published layout.

img2dataset needs pandas 2, which conflicts with the tests' own, so it is used only if it is
installed. Compared with it by `test_the_stand_in_writes_what_img2dataset_writes`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def download(url: str, image_size: int) -> tuple[bytes | None, str, str | None]:
    """The JPEG, the status, and the error."""
    try:
        with urllib.request.urlopen(url) as response:
            content = response.read()
    except urllib.error.URLError as error:
        return None, "failed_to_download", str(error)
    try:
        image = Image.open(io.BytesIO(content)).convert("RGB")
    except OSError:
        return None, "failed_to_resize", "Image decoding error"
    scale = image_size / min(image.size)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue(), "success", None


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("url_list", "input_format", "url_col", "resize_mode", "output_folder"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--output_format", choices=("webdataset", "files"), required=True)
    parser.add_argument("--resize_only_if_bigger", choices=("True",), required=True)
    parser.add_argument("--save_additional_columns", type=json.loads, default=[])
    for name, default in (("image_size", 256), ("processes_count", 1), ("thread_count", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    assert (options.input_format, options.resize_mode) == ("parquet", "keep_ratio")
    folder = Path(options.output_folder)
    folder.mkdir(parents=True)
    records: list[dict[str, Any]] = []
    members: dict[str, bytes] = {}
    for number, row in enumerate(pq.read_table(options.url_list).to_pylist()):
        content, status, error = download(row[options.url_col], options.image_size)
        record = {name: row[name] for name in options.save_additional_columns}
        record |= {"url": row[options.url_col], "key": f"{number:09}", "status": status}
        record["error_message"] = error
        record["sha256"] = content and hashlib.sha256(content).hexdigest()
        records.append(record)
        if content:
            members[f"{record['key']}.jpg"] = content
            members[f"{record['key']}.json"] = json.dumps(record, indent=4).encode()
    pq.write_table(pa.Table.from_pylist(records), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text(json.dumps({"count": len(records)}))
    if options.output_format == "files":
        (folder / "00000").mkdir()
        for name, content in members.items():
            (folder / "00000" / name).write_bytes(content)
        return
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
