"""Messages name options as flags in the command, and as arguments in Python."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from shards_support import write_labels
from wordnet_support import write_wordnet

from swag_models.cli import main, make_parser
from swag_models.cli.flags import list_flags, spell_flags, spelled_logs
from swag_models.errors import ConfigError
from swag_models.recipe.curation.curate import curate
from swag_models.recipe.data.pack import pack

FLAGS = {
    "license": "--license",
    "min_images": "--min-images",
    "weights_key": "--key",
    "image_short_side": "--resize",
    "skip_unmatched": "--skip-unmatched",
    "id": "--id",
    "threads": "--threads",
}


@pytest.mark.parametrize(
    ("message", "spelled"),
    [
        ('state it with license="..."', "state it with --license"),
        ("lower min_images=", "lower --min-images"),
        ("raise memory= or lower threads=", "raise memory= or lower --threads"),
        ('pass weights_key="a b", or threads=2', "pass --key a b, or --threads 2"),
        ("leave it out with skip_unmatched=True", "leave it out with --skip-unmatched"),
        ("invalid image_short_side 0: allowed", "invalid --resize 0: allowed"),
        # the user wrote these, or text from outside contains them
        ("invalid min_images 0: allowed", "invalid min_images 0: allowed"),
        ("'id=' and https://x/?id=3 and id=x and a/id= and 'license=\"...\"'", None),
        ("invalid", None),
        ("", None),
    ],
)
def test_options_become_flags(message: str, spelled: str | None) -> None:
    assert spell_flags(message, FLAGS) == (message if spelled is None else spelled)
    assert spell_flags(message, {}) == message


def test_python_and_the_command_name_options_in_their_own_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wordnet = write_wordnet(tmp_path / "wordnet")
    posts, labels = tmp_path / "p.jsonl", tmp_path / "labels.parquet"
    posts.write_text('{"id": 1, "tags": ["bear"]}\n')
    options = ["--wordnet", str(wordnet), "-o", str(tmp_path / "out"), "--quiet"]
    with pytest.raises(ConfigError, match=r"check licenses= and exclude=$"):
        curate([posts], tmp_path / "out", licenses=["CC0"], wordnet=wordnet, progress=False)
    assert main(["recipe", "curate", str(posts), *options, "--keep-license", "CC0"]) == 2
    assert capsys.readouterr().err.endswith("check --keep-license and --exclude\n")
    (tmp_path / "p.csv").write_text("file,words\na,b\n")
    assert main(["recipe", "curate", str(tmp_path / "p.csv"), *options]) == 2
    assert "words; name one with --hashtags or --caption\n" in capsys.readouterr().err
    write_labels(labels, {"a": ((0,), 1.0)})
    with pytest.raises(ConfigError, match="invalid image_short_side 0"):
        pack(labels, tmp_path, tmp_path / "shards", image_short_side=0)
    command = ["recipe", "pack", "--labels", str(labels), "--images", str(tmp_path)]
    assert main([*command, "-o", str(tmp_path / "shards"), "--resize", "0"]) == 2
    assert "invalid --resize 0: allowed" in capsys.readouterr().err


def test_warnings_name_flags_too(caplog: pytest.LogCaptureFixture) -> None:
    def warn() -> None:
        logging.getLogger("swag_models").warning('%s: state it with license="..."', "a=")

    options = make_parser().parse_args(
        ["recipe", "train", "vit_nano_hashtags", "--data", "x", "-o", "y"]
    )
    with spelled_logs(list_flags(options)):
        warn()
    warn()
    assert caplog.messages == ["a=: state it with --license", 'a=: state it with license="..."']
