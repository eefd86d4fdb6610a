"""Zip archives that make Python's zipfile raise errors of many kinds."""

import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from swag_models.checkpoint import read_state_dict
from swag_models.errors import CheckpointError, ConfigError, ExportError
from swag_models.export import read_metadata
from swag_models.hub.cache import is_complete
from swag_models.recipe.wordnet import find_wordnet

# An end of a zip64 archive on two disks: zipfile.is_zipfile raises BadZipFile for it.
TWO_DISKS = b"PK\x06\x07" + struct.pack("<LQL", 1, 0, 2) + b"PK\x05\x06" + bytes(18)


def make_archive(name: str, flags: int = 0, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of one file, with flags and a compression method that are not true."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"{}")
    data = bytearray(buffer.getvalue())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.index(signature) + place
        data[start : start + 4] = struct.pack("<HH", flags, method)
    return bytes(data)


def test_an_archive_on_two_disks_is_not_a_complete_weight_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"PK\x03\x04" + TWO_DISKS)
    assert not is_complete(path)
    with pytest.raises(CheckpointError, match="damaged"):
        read_state_dict(path)
    with pytest.raises(ConfigError, match=r"weights\.pth has no WordNet database"):
        find_wordnet(path)
    torch.save({"a": torch.zeros(1)}, path)
    assert is_complete(path)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + TWO_DISKS,
        make_archive("model/extra/swag_models", flags=1),  # encrypted: RuntimeError
        make_archive("model/extra/swag_models", method=99),  # NotImplementedError
        make_archive("model/extra/swag_models", method=zipfile.ZIP_DEFLATED),  # zlib.error
    ],
    ids=["two disks", "encrypted", "unknown compression", "wrong compression"],
)
def test_the_metadata_of_a_damaged_pt2_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.pt2 is damaged, or not from swag-models export"):
        read_metadata(path)


def test_the_metadata_of_a_pt2_are_not_decompressed_without_bound(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/extra/swag_models", bytes(1 << 26))
    with pytest.raises(ExportError, match="67,108,864 bytes, more than 33,554,432"):
        read_metadata(path)
