"""The study on real images: its tasks, its page, and (slow) a complete study of few steps."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_drawings import write_package

from studies.__main__ import main
from studies.drawings import report, task
from studies.drawings.report import (
    BEGIN,
    CLAIMS,
    END,
    MEASURES,
    NOT_RUN,
    PAGE,
    RESULTS,
    STARTS,
    format_results,
    replace_part,
    write_report,
)
from studies.drawings.study import (
    MAIN,
    SCRATCH,
    TRANSFERS,
    VARIANTS,
    DrawingsStudy,
    list_tasks,
)
from studies.drawings.task import GROUPS, POOL, group_emoji
from swag_models.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"
VERSIONS = {"swag_models": "0", "torch": "1", "python": "2"}


def make_results(lead: float = 10.0) -> dict[str, Any]:
    """Invented results of every task; the main variant is `lead` points ahead."""
    study, make, rows = DrawingsStudy(archs=("regnety_nano", "vit_nano")), random.Random(0), []
    for item in list_tasks(study):
        measures = [] if item.variant == SCRATCH else [(name, 0) for name in MEASURES]
        for measure, shots in [*measures, *item.list_transfers(study)]:
            value = 20 + make.random() + (lead if item.variant == MAIN else 0)
            rows.append({**item._asdict(), "measure": measure, "shots": shots, "value": value})
    facts = {
        "archs": list(study.archs),
        "shots": list(study.shots),
        "seeds": 3,
        "length": 1.0,
        "min_images": 6,
        "posts": 1000,
    }
    return {"facts": facts, "versions": VERSIONS, "rows": rows}


def test_every_variant_is_run_with_every_seed() -> None:
    tasks = list_tasks(DrawingsStudy(seeds=2))
    assert len({item.name for item in tasks}) == len(tasks) == 2 * (len(VARIANTS) + 1)
    assert all(re.fullmatch(r"[\w-]+", item.name) for item in tasks)
    shots = DrawingsStudy.shots
    (main_task,) = [item for item in tasks if (item.variant, item.seed) == (MAIN, 0)]
    assert len(main_task.list_transfers(DrawingsStudy())) == len(TRANSFERS) * len(shots)
    assert {variant for variant, _ in STARTS.values()} == {MAIN, SCRATCH}
    compared = {variant for _, *pair, _ in CLAIMS for variant in pair}
    assert compared == set(VARIANTS)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"shots": (31,)}, r"shots are \(31,\); allowed: numbers from 1 to 30"),
        ({"length": 0.0}, "length is 0.0; allowed: a number above 0"),
        ({"archs": ("vit_b16",)}, "archs is 'vit_b16'; allowed: regnety_nano, vit_nano"),
    ],
)
def test_sizes_are_checked(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DrawingsStudy(**sizes)


def test_a_study_needs_drawings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drawings", str(tmp_path / "study"), str(tmp_path)]) == 2
    assert "has no drawings; run python -m studies.drawings" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_groups_have_other_images_to_test_on(tmp_path: Path) -> None:
    icons = {group: [f"{label}-{n}" for n in range(40)] for group, label in GROUPS.items()}
    (tmp_path / "twemoji").mkdir()
    rows = [
        {"id": f"twemoji-{icon}", "path": f"images/{icon}.png"}
        for names in icons.values()
        for icon in names
    ]
    (tmp_path / "twemoji" / "posts.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    images = group_emoji(tmp_path, {**icons, "Modifiers": ["light"]})
    assert images.keys() == set(GROUPS.values())
    assert all(
        len(set(paths)) == 40 and all(path.stem.startswith(label) for path in paths)
        for label, paths in images.items()
    )
    assert images["animal"] != sorted(images["animal"])
    with pytest.raises(ConfigError, match="has 30 images of 'flag'; 31 needed"):
        group_emoji(tmp_path, {**icons, "Flags": icons["Flags"][:POOL]})


def test_claims_are_judged_by_the_numbers() -> None:
    def judge(lead: float) -> dict[str, list[str]]:
        table = format_results(make_results(lead)).partition("| claim | measured |")[2]
        lines = [line.split(" | ") for line in table.splitlines() if "**" in line]
        return {f"{line[0]} {line[1]}": re.findall(r"\*\*(.*?)\*\*", str(line)) for line in lines}

    ahead, behind = judge(10), judge(-10)
    assert len(ahead) == 3 * 4 + 2 * len(CLAIMS)
    reversed_claims = ("| IDF weights", "| hashtags and captions")  # the main variant is second
    for claim, verdicts in ahead.items():
        if "head from hashtags" not in claim:
            better = not claim.startswith(reversed_claims)
            assert verdicts == ["confirmed" if better else "not confirmed"] * 2, claim
            assert behind[claim] == ["not confirmed" if better else "confirmed"] * 2, claim


@pytest.mark.slow
def test_the_page_is_written_from_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / PAGE).write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    results = make_results()
    for row in results["rows"]:
        if (row["variant"], row["measure"], row["arch"]) == (MAIN, "neighbours", "vit_nano"):
            row["value"] = [10.0, 20.0, 30.0][row["seed"]]
    write_report(results, tmp_path)
    text = (tmp_path / PAGE).read_text()
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert re.search(r"\| vit_nano \| main \|.*\| 20.0 ± 10.0 \|", text)
    assert json.loads((tmp_path / RESULTS).read_text()) == results
    first = (tmp_path / "drawings_study.png").read_bytes()
    write_report(json.loads((tmp_path / RESULTS).read_text()), tmp_path)
    assert (tmp_path / PAGE).read_text() == text
    assert (tmp_path / "drawings_study.png").read_bytes() == first
    (tmp_path / PAGE).write_text("nothing")
    for content, message in (
        (json.dumps(results), "lacks the lines"),
        ("{}", "is no results.json of this study"),
        ("[", "is no results.json of this study"),
    ):
        (tmp_path / "results.json").write_text(content)
        assert report.main([str(tmp_path / "results.json"), str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


def test_docs_have_the_results_that_are_stored_beside_them() -> None:
    text = (DOCS / PAGE).read_text()
    stored = DOCS / RESULTS
    part = format_results(json.loads(stored.read_text())) if stored.exists() else NOT_RUN + "\n"
    assert replace_part(text, part, DOCS / PAGE) == text


def test_the_contact_sheet_is_small() -> None:
    path = DOCS / "drawings.png"
    assert path.stat().st_size < 300_000
    with Image.open(path) as image:
        assert image.width < 1000


@pytest.mark.slow
def test_the_study_goes_from_drawings_to_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Squares of random colours for drawings; a rerun does nothing."""
    make, drawings, names = random.Random(0), tmp_path / "drawings", list(GROUPS.values())
    (drawings / "twemoji").mkdir(parents=True)
    emoji = {label: [chr(0x1F300 + 40 * n + k) for k in range(32)] for n, label in enumerate(names)}
    for folder, source in ((drawings, "noto"), (drawings / "twemoji", "twemoji")):
        (folder / "images").mkdir()
        rows = []
        for label, characters in emoji.items():
            for number, character in enumerate(characters):
                row = {"id": f"{source}-{label}-{number}", "hashtags": [label, "dog"]}
                row |= {"path": f"images/{row['id']}.png", "emoji": character, "caption": label}
                colour = tuple(make.randrange(256) for _ in range(3))
                Image.new("RGB", (72, 72), colour).save(folder / row["path"])
                rows.append(row)
        (folder / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (drawings / "summary.json").write_text("{}")
    metadata = {group: [f"{label}-{n}" for n in range(32)] for group, label in GROUPS.items()}
    package = write_package(
        tmp_path / "cache", "twemoji", {"metadata.json": {"categories": metadata}}
    )
    source = task.EMOJI[-1]._replace(package=package)
    monkeypatch.setattr(task, "EMOJI", [source])
    study, cache = tmp_path / "study", str(tmp_path / "cache")
    command = ["drawings", str(study), str(drawings), "--cache", cache, "--quiet"]
    command += ["--seeds", "1", "--length", "0.005", "--min-images", "3", "--processes", "2"]
    label_twemoji(drawings)
    assert main(command) == 0
    results = json.loads((study / "results.json").read_text())
    shutil.copy(DOCS / PAGE, tmp_path)
    write_report(results, tmp_path)
    assert "### Claims" in (tmp_path / PAGE).read_text()
    before = {path: path.stat().st_mtime_ns for path in (study / "results").iterdir()}
    assert len(before) == len(VARIANTS) + 1
    assert main(command) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (study / "results").iterdir()}
    assert main([*command, "--length", "1"]) == 2


def label_twemoji(drawings: Path) -> None:
    """Curate the held-out artist's posts, as `label_held_out` does."""
    from swag_models.recipe.curation.curate import Curation, curate

    folder = drawings / "twemoji"
    curate([folder / "posts.jsonl"], folder / "own", Curation(), progress=False)
