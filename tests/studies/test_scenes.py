"""The folder of generated scenes: content, resuming after interruptions, and appearance."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fetch_support import wait_until
from filelock import FileLock
from PIL import Image

from studies.__main__ import main
from studies.scenes import write_scenes
from studies.scenes.gallery import WORDNET
from studies.scenes.posts import split_held_out
from studies.scenes.scene import Scene, plan_held_out, render
from studies.scenes.sheet import draw_contact_sheet
from studies.scenes.things import NAMES, PLANTED
from swag_models.errors import ConfigError, OutputError

POSTS, HELD_OUT, SIZE = 400, 64, 48
ROOT = Path(__file__).parents[2]


def make(folder: Path, **changes: int) -> Path:
    arguments = {
        "posts": POSTS,
        "held_out": HELD_OUT,
        "image_size": SIZE,
        "seed": 3,
        "processes": 1,
    } | changes
    assert write_scenes(folder, **arguments, progress=False).path == folder
    return folder


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its name in the folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("scenes") / "scenes")


def test_the_folder_holds_what_it_says(scenes: Path) -> None:
    posts, truth, held_out = (
        read(scenes / f"{name}.jsonl") for name in ("posts", "truth", "held_out")
    )
    assert (len(posts), len(truth), len(held_out)) == (POSTS, POSTS, HELD_OUT)
    assert [row["id"] for row in posts] == [row["id"] for row in truth]
    assert [set(row) for row in posts] == [
        {"id", "url", "path", "caption", "license", "group"}
    ] * POSTS
    named = {str(row["path"]) for row in (*posts, *held_out)}
    others = {"posts.jsonl", "truth.jsonl", "held_out.jsonl", "scenes.json"} | {
        f"wordnet/{path.name}" for path in WORDNET.iterdir()
    }
    assert set(digest(scenes)) == named | others
    assert sorted(path.name for path in (scenes / "held_out").iterdir()) == sorted(NAMES)
    for row in held_out:
        assert row["path"] == f"held_out/{row['thing']}/{row['id']}.jpg"
    for name in named:
        with Image.open(scenes / name) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SIZE, SIZE))
    world = json.loads((scenes / "scenes.json").read_text())
    assert (world["posts"], world["seed"], [thing["name"] for thing in world["things"]]) == (
        POSTS,
        3,
        list(NAMES),
    )
    assert {
        thing["name"]: thing["planted"] for thing in world["things"] if thing["planted"]
    } == PLANTED


def test_held_out_images_are_split_whatever_the_posts(scenes: Path) -> None:
    rows = [
        json.loads(line) for line in (scenes / "held_out.jsonl").read_text("utf-8").splitlines()
    ]
    drawn, tested = split_held_out(1, 2, seed=3)
    written = [image.row for image in drawn + tested]
    shared = min(len(rows), len(written))
    assert shared >= len(NAMES)
    assert rows[:shared] == written[:shared]
    for images, each in ((drawn, 1), (tested, 2)):
        things = [image.row["thing"] for image in images]
        assert {name: things.count(name) for name in NAMES} == dict.fromkeys(NAMES, each)


def test_a_repost_shows_the_same_picture(scenes: Path) -> None:
    paths = {row["id"]: scenes / str(row["path"]) for row in read(scenes / "posts.jsonl")}
    reposts = [row for row in read(scenes / "truth.jsonl") if row["repost_of"]]
    assert reposts
    for row in reposts:
        assert paths[row["id"]].read_bytes() == paths[row["repost_of"]].read_bytes()


def test_any_number_of_processes_gives_the_same_bytes(scenes: Path, tmp_path: Path) -> None:
    assert digest(make(tmp_path / "two", processes=2)) == digest(scenes)
    assert len(
        set(digest(make(tmp_path / "other", posts=40, seed=4)).values())
        & set(digest(scenes).values())
    ) == len(list(WORDNET.iterdir()))


def test_more_posts_begin_with_the_same_ones(scenes: Path, tmp_path: Path) -> None:
    fewer = make(tmp_path / "fewer", posts=50, held_out=0)
    assert read(fewer / "posts.jsonl") == read(scenes / "posts.jsonl")[:50]
    assert (fewer / "held_out.jsonl").read_text() == ""


def test_complete_scenes_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, few = (
        tmp_path / "scenes",
        ["--posts", "20", "--held-out", "2", "--image-size", "32", "--quiet"],
    )
    folder.mkdir()
    assert main(["scenes", str(folder), *few]) == 0
    assert capsys.readouterr() == (f"{folder}\n", "swag-models: 20 posts and 2 held-out images\n")
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["scenes", str(folder), *few]) == 0
    assert capsys.readouterr() == (
        f"{folder}\n",
        "swag-models: 20 posts and 2 held-out images (already complete)\n",
    )
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["scenes", str(folder), *few, "--seed", "1"]) == 2
    assert capsys.readouterr().err.endswith(
        "contains scenes with seed 0, not 1; delete it or choose another name\n"
    )


@contextlib.contextmanager
def start(folder: Path, **options: int) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """The command when it has written some images, and its processes; killed at the end."""
    named = (
        str(each)
        for name, value in options.items()
        for each in (f"--{name.replace('_', '-')}", value)
    )
    command = [sys.executable, "-m", "studies", "scenes", str(folder), *named]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            wait_until(lambda: len(list_images(folder)) > 40)
            yield (
                process,
                list(
                    map(
                        int,
                        Path(f"/proc/{process.pid}/task/{process.pid}/children")
                        .read_text()
                        .split(),
                    )
                ),
            )
        finally:
            process.kill()


def list_images(folder: Path) -> dict[Path, int]:
    """When each image of the work under way was written."""
    work = folder.with_name(f"{folder.name}.work")
    return {path.relative_to(work): path.stat().st_mtime_ns for path in work.glob("images/*/*.jpg")}


@pytest.mark.slow
def test_work_that_is_killed_goes_on_and_leaves_no_process_behind(
    scenes: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "scenes"
    with start(folder, posts=POSTS, held_out=HELD_OUT, image_size=SIZE, seed=3, processes=2) as (
        process,
        children,
    ):
        process.kill()
        process.communicate()
    assert len(children) >= 2
    wait_until(lambda: not any(map(is_alive, children)), timeout=5)
    assert not folder.exists()
    done = list_images(folder)
    assert 40 < len(done) < POSTS
    assert digest(make(folder, processes=2)) == digest(scenes)
    assert all((folder / name).stat().st_mtime_ns == time for name, time in done.items()), (
        "painted again"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


@pytest.mark.slow
def test_interrupted_work_ends_soon(tmp_path: Path) -> None:
    with start(tmp_path / "scenes", posts=3000, held_out=0, image_size=192, processes=2) as (
        process,
        children,
    ):
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=15)[1]
    assert process.returncode == 130
    assert said.endswith("swag-models: error: interrupted\n")
    assert "Traceback" not in said
    wait_until(lambda: not any(map(is_alive, children)), timeout=5)


@pytest.mark.slow
def test_a_painter_that_is_killed_is_reported(tmp_path: Path) -> None:
    with start(tmp_path / "scenes", posts=3000, held_out=0, processes=2) as (process, children):
        named = {child: Path(f"/proc/{child}/cmdline").read_text() for child in children}
        os.kill(
            next(child for child, command in named.items() if "spawn_main" in command),
            signal.SIGKILL,
        )
        said = process.communicate(timeout=15)[1]
    assert process.returncode == 1
    assert "swag-models: error: a process was killed" in said
    assert "Traceback" not in said


def is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"posts": 0}, "posts is 0; allowed: 1 or more"),
        ({"held_out": -1}, "held_out is -1; allowed: 0 or more"),
        ({"seed": -2}, "seed is -2; allowed: 0 or more"),
        ({"processes": 0}, "processes is 0; allowed: 1 or more"),
        ({"image_size": 8}, "image_size is 8; allowed: 32 to 512 pixels"),
        ({"image_size": 1000}, "image_size is 1000; allowed: 32 to 512 pixels"),
    ],
)
def test_arguments_out_of_range_are_refused(
    changes: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        make(tmp_path / "scenes", **changes)
    assert not list(tmp_path.iterdir())


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("Dear")
    with pytest.raises(
        ConfigError, match=r"mine exists and contains no scenes; choose another name$"
    ):
        make(mine)
    with pytest.raises(
        ConfigError, match=r"nowhere is not a folder; create it, or choose another one for scenes$"
    ):
        make(tmp_path / "nowhere" / "scenes")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file exists and contains no scenes"):
        make(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"^\. has no name; pass a new folder, such as scenes$"):
        make(Path())


def test_work_of_others_is_refused(tmp_path: Path) -> None:
    work = tmp_path / "scenes.work"
    work.mkdir()
    with (
        FileLock(work / ".lock"),
        pytest.raises(ConfigError, match=r"another process is writing .*scenes; wait for it"),
    ):
        make(tmp_path / "scenes")
    (work / "scenes.json").write_text('{"version": 1,')
    with pytest.raises(
        ConfigError,
        match=r"scenes\.json is damaged; delete .*scenes\.work or choose another output$",
    ):
        make(tmp_path / "scenes")
    (work / "scenes.json").write_text(json.dumps({"version": 1, "posts": 7}))
    with pytest.raises(
        ConfigError,
        match=r"scenes holds other work, with .*; delete .*scenes\.work or choose another output$",
    ):
        make(tmp_path / "scenes")


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "scenes.work").mkdir()
    (tmp_path / "scenes.work" / "images").write_text("in the way")
    with pytest.raises(OutputError, match="scenes cannot be written: "):
        make(tmp_path / "scenes")


def measure(
    club: str, names: tuple[str, ...], of: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """A quantity of 40 images of each thing: (things, 40, ...)."""
    scenes = [
        [Scene(f"{club}/{name}/{number}", (name,), club) for number in range(40)] for name in names
    ]
    return np.array([[of(np.asarray(render(scene, 32), float)) for scene in row] for row in scenes])


def test_a_things_usual_colours_are_usual_and_not_certain() -> None:
    def count(thing: str) -> float:
        """The share of images in which there is much strong yellow."""
        yellow = measure(
            "a", (thing,), lambda image: ((image @ [[1.0], [1.0], [-2.0]]) > 220).mean()
        )[0]
        return float((yellow > 0.05).mean())

    often, seldom = count("banana"), count("umbrella")
    assert 0.35 < often < 0.9
    assert seldom < often - 0.2


def test_the_tone_of_a_image_tells_the_group() -> None:
    warmth = [
        measure(club, NAMES[:3], lambda image: image[..., 0].mean() / image[..., 2].mean())
        for club in "ab"
    ]
    assert np.median(warmth[0]) / np.median(warmth[1]) > 1.3


def test_the_contact_sheet_in_the_docs_shows_the_present_drawings() -> None:
    path = ROOT / "docs" / "scenes.png"
    assert path.stat().st_size < 400_000
    with Image.open(path) as committed:
        was, now = (
            np.asarray(sheet.convert("RGB"), float) for sheet in (committed, draw_contact_sheet())
        )
    assert was.shape == now.shape
    assert np.abs(was - now).mean() < 4, (
        "draw it again: python -m studies.scenes.sheet docs/scenes.png"
    )


def test_a_image_can_be_of_any_size_and_shows_the_same() -> None:
    small, large = (
        np.asarray(render(plan_held_out(0, 1), size).resize((32, 32)), float) for size in (64, 256)
    )
    assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.9
