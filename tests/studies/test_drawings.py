"""The folder of drawings: what is fetched, read, rendered and held out."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from studies.drawings import build
from studies.drawings.__main__ import main
from studies.drawings.fetch import fetch_clip_art, fetch_npm
from studies.drawings.keywords import EmojiNames, read_clip_art
from studies.drawings.posts import Drawing, list_clip_art, list_emoji
from studies.drawings.render import Job, render, render_all
from studies.drawings.sources import CLIP_ART_FOLDER, EMOJI, NpmPackage
from studies.drawings.split import choose_split
from studies.scenes.gallery import WORDNET
from swag_models.errors import ConfigError, FetchError
from swag_models.recipe.data.sources import open_source

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}">{2}</svg>'
METADATA = """<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"
  xmlns:cc="http://web.resource.org/cc/"
  xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><r:RDF><cc:Work>
  <dc:title>Red  bus</dc:title><dc:description>{0}</dc:description>
  <dc:subject><r:Bag><r:li>bus</r:li><r:li>hash</r:li><r:li>HASH(0x862bbb8)</r:li><r:li>hash(0x862bbb8)</r:li>
  <r:li>red_bus</r:li><r:li/></r:Bag></dc:subject>
  <dc:creator><cc:Agent><dc:title>Ada</dc:title></cc:Agent></dc:creator>
  <cc:license r:resource="{1}"/></cc:Work></r:RDF></metadata>"""
PUBLIC = "http://web.resource.org/cc/PublicDomain"
RED = '<path fill="red" d="M{0} {1}h{2}v{2}h-{2}z"/>'


def write_package(folder: Path, name: str, files: dict[str, Any]) -> NpmPackage:
    """A package of npm in a folder, as `npm pack` writes it."""
    package = NpmPackage(name, "1.0.0", "")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / package.file_name, "w:gz") as archive:
        for path, value in files.items():
            data = json.dumps(value).encode()
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    sha256 = hashlib.sha256((folder / package.file_name).read_bytes()).hexdigest()
    return package._replace(sha256=sha256)


def add_program(folder: Path, name: str, script: str, patch: pytest.MonkeyPatch) -> None:
    """Put a shell script first on the PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_package_is_downloaded_once_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = write_package(tmp_path / "registry", "@scope/icons", {"a.json": {}})
    log = tmp_path / "calls"
    copy = f'echo "$@" >> {log}; cp {tmp_path / "registry" / package.file_name} .'
    add_program(tmp_path / "bin", "npm", copy, monkeypatch)
    cache = tmp_path / "cache"
    path = fetch_npm(package, cache)
    assert path == cache / "scope-icons-1.0.0.tgz"
    assert fetch_npm(package, cache) == path
    assert log.read_text() == "pack --loglevel=error @scope/icons@1.0.0\n"
    path.write_bytes(path.read_bytes()[:-1])  # damaged: downloaded again
    fetch_npm(package, cache)
    assert len(log.read_text().splitlines()) == 2
    with pytest.raises(FetchError, match=r"^@scope/icons@1.0.0 has SHA-256 \w+, not 00; "):
        fetch_npm(package._replace(sha256="00"), cache)
    assert [entry.name for entry in cache.iterdir()] == [path.name]


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = NpmPackage("icons", "1.0.0", "00")
    add_program(tmp_path / "bin", "npm", "echo one >&2; echo npm ERR 404 >&2; exit 3", monkeypatch)
    with pytest.raises(FetchError) as error:
        fetch_npm(package, tmp_path / "cache")
    assert str(error.value) == ("npm failed with icons@1.0.0: npm ERR 404; rerun to try again")
    add_program(tmp_path / "bin", "apt-get", "exit 100", monkeypatch)
    with pytest.raises(FetchError, match=r"^apt-get failed with \S+: exit code 100; rerun"):
        fetch_clip_art(tmp_path / "cache", tmp_path / "no_root")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="npm is not installed; install it to get icons@1"):
        fetch_npm(package, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_package_of_clip_art_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_program(tmp_path / "bin", "apt-get", "touch openclipart-svg_1_all.deb", monkeypatch)
    unpack = f"mkdir -p $3/{CLIP_ART_FOLDER}; echo $2 > $3/name"
    add_program(tmp_path / "bin", "dpkg-deb", unpack, monkeypatch)
    folder = fetch_clip_art(tmp_path / "one", tmp_path / "no_root")
    assert folder == tmp_path / "one" / "openclipart-svg" / CLIP_ART_FOLDER
    assert folder.is_dir()
    add_program(tmp_path / "bin", "apt-get", "exit 1", monkeypatch)
    assert fetch_clip_art(tmp_path / "one", tmp_path / "no_root") == folder
    (tmp_path / "two").mkdir()
    own = tmp_path / "two" / "openclipart-svg_2_all.deb"
    own.touch()
    fetch_clip_art(tmp_path / "two", tmp_path / "no_root")
    assert (tmp_path / "two" / "openclipart-svg" / "name").read_text() == f"{own}\n"


def test_installed_clip_art_is_not_downloaded(tmp_path: Path) -> None:
    (tmp_path / CLIP_ART_FOLDER).mkdir(parents=True)
    assert fetch_clip_art(tmp_path / "cache", tmp_path) == tmp_path / CLIP_ART_FOLDER


def test_clip_art_has_its_authors_words(tmp_path: Path) -> None:
    for name, licence, description in (
        ("bus", PUBLIC, "A bus,\nin red"),
        ("copy", PUBLIC, "0x8b754fc"),
        ("gpl", "http://creativecommons.org/licenses/GPL/2.0/", ""),
    ):
        metadata = METADATA.format(description, licence)
        (tmp_path / f"{name}.svg").write_text(SVG.format(9, 9, metadata))
    (tmp_path / "broken.svg").write_text("<svg>")
    (tmp_path / "plain.svg").write_text(SVG.format(9, 9, ""))
    (tmp_path / "link.svg").symlink_to(tmp_path / "bus.svg")
    left_out = Counter[str]()
    bus, copy = list_clip_art(tmp_path, left_out)
    assert (bus.id, bus.artist, bus.license) == ("openclipart-bus", "Ada", "public domain")
    assert bus.hashtags == ["bus", "red_bus"]
    assert (bus.caption, copy.caption) == ("Red bus. A bus, in red", "Red bus")
    assert left_out == {
        "openclipart: not well-formed": 1,
        "openclipart: not in the public domain": 1,
        "openclipart: without keywords and title": 1,
        "openclipart: links to another file": 1,
    }
    (tmp_path / "latin.svg").write_bytes(b'<?xml version="1.0" encoding="nonsense"?><svg/>')
    assert read_clip_art(tmp_path / "latin.svg") is None


def test_icons_are_found_by_code_points_and_by_all_names() -> None:
    names = EmojiNames(
        {
            "\u2708\ufe0f": ["airplane", "travel"],
            "\U0001f346": ["eggplant"],
            "\U0001f1e6\U0001f1eb": ["flag_afghanistan"],
            "\U0001f92a": ["zany_face"],
        }
    )
    names.add_charts([{"1f92a": "goofy-face", "1f92a-1f3fb": "goofy-face-light"}])
    assert names.find_codes("2708") == names.find_codes("2708-fe0f") == "\u2708\ufe0f"
    assert names.find_name("aubergine") == names.find_name("eggplant") == "\U0001f346"
    assert names.find_name("flag-for-afghanistan") == "\U0001f1e6\U0001f1eb"
    assert names.find_name("goofyface") == "\U0001f92a"
    assert names.find_name("goofy-face-light") is names.find_name("letter-a") is None


def test_each_artist_draws_an_emoji_once(tmp_path: Path) -> None:
    icons = {
        "width": 20,
        "height": 20,
        "icons": {
            "apple": {"body": "<g/>"},
            "red-apple": {"body": "<g/>", "width": 30},
            "apple-light-skin-tone": {"body": "<g/>"},
        },
    }
    keywords = write_package(
        tmp_path, "lib", {"dist/emoji-en-US.json": {"\U0001f34e": ["red_apple", "fruit", ":D"]}}
    )
    package = write_package(
        tmp_path, "icons", {"icons.json": icons, "chars.json": {"1f34e": "apple"}}
    )
    left_out = Counter[str]()
    source = EMOJI[0]
    (apple,) = list_emoji(
        {source: tmp_path / package.file_name}, tmp_path / keywords.file_name, left_out
    )
    assert apple.row == {
        "id": "noto-apple",
        "path": "images/noto/noto-apple.png",
        "hashtags": ["red apple", "fruit", ":D"],
        "caption": "red apple",
        "source": "noto",
        "artist": "Google",
        "license": "Apache-2.0",
        "emoji": "\U0001f34e",
    }
    assert 'viewBox="0 0 20 20"' in str(apple.svg)
    assert sum(left_out.values()) == 2


def test_the_drawing_fills_a_white_square() -> None:
    small = render(
        SVG.format(
            "100mm", "50mm", RED.format(300, 10, 30) + RED.format(315, 25, 3).replace("red", "blue")
        ),
        100,
    )
    image = np.asarray(Image.open(io.BytesIO(small)))
    assert image.shape == (100, 100, 3)
    red = (image[..., 0] > 250) & (image[..., 1:] < 5).all(axis=2)
    assert red.mean() > 0.75  # 94 x 94 pixels, although it covers a hundredth of the page
    assert (image[0] == 255).all()
    # transparent parts are white, and a long page keeps its shape
    lines = '<path d="M4 0h2v200h-2z" fill-opacity=".5"/><path fill="red" d="M4 0h2v20h-2z"/>'
    bar = render(SVG.format(10, 200, lines), 100)
    image = np.asarray(Image.open(io.BytesIO(bar)))
    assert (image.min(axis=2) < 200).any(axis=1).sum() > 90
    assert (image.min(axis=2) < 200).any(axis=0).sum() < 4


@pytest.mark.parametrize(
    "svg",
    [
        "",
        "no svg",
        SVG.format(9, 9, ""),
        SVG.format(0, 9, "<g/>"),
        SVG.format(9, 9, '<path fill="white" d="M0 0h9v9z"/>'),
        SVG.format(9, 9, "<g>"),
    ],
)
def test_what_cannot_be_drawn_is_named(svg: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "a" / "good.png", tmp_path / "a" / "bad.png"
    jobs = [Job(svg, bad), Job(SVG.format(9, 9, RED.format(1, 1, 5)), good)]
    ((path, reason),) = render_all(jobs, 32, 1, progress=False)
    assert path == bad
    assert reason
    assert "\n" not in reason
    assert [entry.name for entry in good.parent.iterdir()] == ["good.png"]


def test_the_split_is_fixed() -> None:
    assert choose_split("twemoji", "twemoji", "\U0001f34e") == "twemoji"
    counts = Counter(choose_split("openclipart", "openclipart", str(n)) for n in range(4000))
    assert 520 < counts["clipart_test"] < 680
    assert 150 < counts["val"] < 250
    emoji = [chr(0x1F300 + number) for number in range(500)]
    splits = [choose_split("noto", "noto", character) for character in emoji]
    assert splits == [choose_split("noto-v1", "noto", character) for character in emoji]
    assert splits != [choose_split("fxemoji", "fxemoji", character) for character in emoji]
    assert set(splits) == {"train", "val"}
    digest = hashlib.sha256("".join(splits).encode()).hexdigest()
    assert digest.startswith("d6659a1793d3"), "the published results were made with another split"


def make_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a command that builds small drawings from invented packages."""
    words = ["apple", "owl", "cup", "car", "boat", "tree", "cat", "fish", "star", "hat"]
    emoji = {chr(0x1F300 + number): [words[number % 10], "nonsense"] for number in range(60)}
    cache = tmp_path / "cache"
    icons, chart = {"width": 9, "height": 9, "icons": {}}, {}
    for number, character in enumerate(emoji):
        body = f'<g transform="rotate({6 * number} 4 4)">{RED.format(1, 2, 3 + number % 5)}</g>'
        icons["icons"] |= {f"icon-{number}": {"body": body + RED.format(7, 7, 1 + number / 60)}}
        chart[f"{ord(character):x}"] = f"icon-{number}"
    icons["icons"]["icon-0"]["body"] = "<g>"
    sources = []
    for source in EMOJI[-3:]:
        files = {"icons.json": icons, "chars.json": chart}
        sources.append(source._replace(package=write_package(cache, source.name, files)))
    keywords = write_package(cache, "lib", {"dist/emoji-en-US.json": emoji})
    clip_art = tmp_path / CLIP_ART_FOLDER
    clip_art.mkdir(parents=True)
    for number in range(40):
        metadata = METADATA.format("", PUBLIC).replace("bus<", f"{words[number % 10]}<")
        drawn = RED.format(number, 2, 5) + RED.format(50, number, 3)
        (clip_art / f"{number}.svg").write_text(SVG.format(60, 60, metadata + drawn))
    monkeypatch.setattr(build, "EMOJI", sources)
    monkeypatch.setattr(build, "KEYWORDS", keywords)
    monkeypatch.setattr(build, "fetch_clip_art", lambda cache: clip_art)
    options = ["--size", "32", "--min-images", "3", "--processes", "1", "--quiet"]
    folder = str(tmp_path / "drawings")
    return [folder, "--cache", str(cache), "--wordnet", str(WORDNET), *options]


@pytest.mark.slow
def test_the_folder_is_built_curated_and_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small packages through the whole command; a rerun changes nothing."""
    command = make_command(tmp_path, monkeypatch)
    output = tmp_path / "drawings"
    assert main(command) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["images"]["twemoji"] == {"twemoji": 59}
    assert sum(summary["left_out"].values()) == 3  # icon-0 of each artist
    assert len(read_lines(output / "rejects.jsonl")) == 3
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}
    assert main(command) == 0
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}
    lost = min(before)  # an interrupted run resumes: only what is missing is rendered
    lost.unlink()
    (output / "images.json").unlink()
    assert main(command) == 0
    assert lost.exists()
    del before[lost]
    assert before == {
        path: path.stat().st_mtime_ns for path in output.rglob("*.png") if path in before
    }
    vocabulary = pq.read_table(output / "curated" / "vocabulary.parquet").to_pylist()
    numbers = {row["hashtag"]: row["class"] for row in vocabulary}
    posts = read_lines(output / "twemoji" / "posts.jsonl")
    of_id = {row["id"]: row["hashtags"][0] for row in posts}
    labels = pq.read_table(output / "twemoji" / "labels.parquet").to_pylist()
    assert labels
    assert all(row["classes"] == [numbers[of_id[row["id"]]]] for row in labels)
    classes = open_source(
        output / "val" / "shards", synsets=[row["synset"] for row in vocabulary]
    ).num_classes
    assert classes is not None
    assert classes <= len(vocabulary)
    assert main([*command, "--size", "48"]) == 2


def test_ids_are_unique_file_names() -> None:
    row = Drawing("a-b", "val", "<svg/>", [], "", "noto", "Google", "MIT").row
    assert row["path"] == "images/noto/a-b.png"
    assert "svg" not in row
