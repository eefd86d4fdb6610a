"""The command line: data on stdout, messages on stderr, and exit codes."""

import json
import subprocess
import sys
import tarfile
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fetch_support import isolate
from image_support import SCENES, compute_probabilities, predict_labels
from PIL import Image
from safetensors.torch import load_file
from server import Server

import swag_models
from swag_models.cli import COMMANDS, main
from swag_models.cli.common import Parser, make_adder
from swag_models.inference.embeddings_file import read_embeddings

FILES = sorted(SCENES.iterdir())
CLASSIFY = ["classify", "--model", "vit_nano_hashtags"]
EMBED = ["embed", "--model", "vit_nano_hashtags"]
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("module", COMMANDS)
def test_each_subcommand_is_found_in_its_module(module: str) -> None:
    parser = Parser()
    import_module(f"swag_models.cli.{module}").add_commands(make_adder(parser))
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    assert tuple(commands) == COMMANDS[module]


def test_listing_models_imports_neither_other_commands_nor_a_network_client() -> None:
    script = (
        "import sys; from swag_models.cli import main; main(['list', 'vit_b16']);"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    imported = set(done.stderr.split())
    assert "swag_models.cli.models" in imported
    heavy = {"swag_models.cli.predict", "swag_models.recipe", "torch", "ssl", "huggingface_hub"}
    assert not heavy & imported
    assert "vit_b16" in done.stdout.split()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a new process."""
    command = [str(Path(sys.executable).parent / "swag-models"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def get_probabilities(row: dict[str, Any]) -> torch.Tensor:
    """The probabilities in a line of JSON, in the order of the classes."""
    values = {p["index"]: p["probability"] for p in row["predictions"]}
    return torch.tensor([values[index] for index in range(65)])


def test_list_shows_every_model_with_its_licence(capsys: Capture) -> None:
    assert main(["list"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    columns = "name pre-training params size GMACs classes top-1 license"
    assert header.split() == columns.split()
    assert [row.split()[0] for row in rows] == swag_models.list_models()
    assert all(row.endswith(("cc-by-nc-4.0", "cc-by-4.0", "apache-2.0")) for row in rows)
    top1 = {row.split()[0]: row.split()[6] for row in rows}
    assert top1["vit_b16_in1k"] == "85.29"
    assert top1["vit_b16"] == top1["vit_nano_hashtags"] == "-"  # not measured on ImageNet-1k


def test_list_takes_patterns_and_filters(capsys: Capture) -> None:
    arguments = ["vit*", "--variant", "in1k", "--family", "swag", "--image-size", "518"]
    assert main(["list", *arguments, "--json"]) == 0
    (spec,) = json.loads(capsys.readouterr().out)
    assert swag_models.ModelSpec.from_dict(spec) == swag_models.get_spec("vit_h14_in1k")


def test_list_sorts_and_limits_the_parameters(capsys: Capture) -> None:
    arguments = ["list", "--sort", "top1", "--max-params", "100M", "--license", "cc-by-nc-4.0"]
    assert main(arguments) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    names = [row.split()[0] for row in rows]
    assert names[:3] == ["vit_b16_maws_in1k", "regnety_16gf_in1k", "vit_b16_in1k"]
    assert all(swag_models.get_spec(name).num_params <= 10**8 for name in names)
    accuracies = [row.split()[6] for row in rows]
    known = [float(value) for value in accuracies if value != "-"]
    assert known == sorted(known, reverse=True)
    assert accuracies[len(known) :] == ["-"] * (len(rows) - len(known))
    assert main(["list", "--family", "swsl", "--sort", "gmacs", "--max-params", "0.03B"]) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == [
        "resnet18_swsl_in1k",
        "resnet50_swsl_in1k",
        "resnext50_32x4d_swsl_in1k",
    ]


@pytest.mark.parametrize("value", ["many", "-1", "1e9", "5G", ""])
def test_a_number_of_parameters_is_checked(value: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["list", f"--max-params={value}"])
    assert "with K, M or B, as 100M" in capsys.readouterr().err


def test_list_and_the_processes_that_pack_images_do_not_import_torch() -> None:
    code = """
import sys
from swag_models.cli import COMMANDS, main
from swag_models.cli.common import Parser, make_adder
main(["list"])
main(["info", "vit_b16"])
from swag_models.recipe.curation import curate
from swag_models.recipe.data import image_set, pack, pack_shards
print("torch" in sys.modules)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.splitlines()[-1] == "False"


def test_info_shows_sources_hashes_and_licence(capsys: Capture) -> None:
    assert main(["info", "regnety_16gf_in1k"]) == 0
    output = capsys.readouterr().out
    for source in swag_models.get_spec("regnety_16gf_in1k").sources:
        assert source.url in output
    assert "SHA-256 43afe44d..." in output
    assert "no published hash" in output
    assert "cc-by-nc-4.0" in output
    assert main(["info", "vit_b16", "--json"]) == 0
    assert swag_models.ModelSpec.from_json(capsys.readouterr().out) == swag_models.get_spec(
        "vit_b16"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "resnet50"], "unknown model 'resnet50'; "),
        (["list", "densenet*"], "no model matches 'densenet*'; known: "),
        ([*CLASSIFY, "nothing/*.png"], "no image in nothing/*.png; "),
        ([*CLASSIFY, str(SCENES), "--top-k", "0"], "invalid top_k 0: allowed: 1 or more"),
        (
            [*CLASSIFY, str(SCENES), "--image-size", "30"],
            "image size 30x30 is not a multiple of the patch size 8",
        ),
        ([*CLASSIFY, str(SCENES), "--device", "gpu"], "device 'gpu' cannot be used here"),
        (
            ["classify", str(SCENES), "--model", "vit_b16"],
            "vit_b16 gives features and has no classes",
        ),
        ([*CLASSIFY, str(SCENES), "--batch-size", "0"], "invalid batch_size 0: allowed: 1 or more"),
        ([*CLASSIFY, str(SCENES), "--dtype", "int8"], "dtype 'int8' is not allowed; "),
        (
            [*CLASSIFY, "gone.tar"],
            "gone.tar cannot be read as an uncompressed tar file: No such file or directory",
        ),
        (
            [*EMBED, str(SCENES), "-o", "x.csv"],
            "unknown suffix of x.csv; allowed: .parquet or .npy",
        ),
        (
            [*EMBED, str(SCENES), "-o", "no/x.npy"],
            "no is not a folder; create it, or choose another one for x.npy",
        ),
        ([*EMBED, "nothing/*.png", "-o", "x.npy"], "no image in nothing/*.png; "),
        (
            ["embed", str(SCENES), "--model", "vit_b61", "-o", "x.npy"],
            "unknown model 'vit_b61'; did you mean: vit_b16, ",
        ),
        (["merge", "gone.npy", "-o", "x.npy"], "gone.json does not exist; swag-models embed "),
    ],
)
def test_wrong_usage_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], message: str, capsys: Capture
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"swag-models: error: {message}")
    assert captured.err.count("\n") == 1


def test_the_installed_command_keeps_data_and_messages_apart() -> None:
    listed, unknown, nothing = run("list"), run("info", "resnet50"), run()
    assert (listed.returncode, listed.stderr) == (0, "")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "Traceback" not in unknown.stderr
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("usage: swag-models")
    assert run("--version").stdout.strip() == f"swag-models {swag_models.__version__}"


def test_a_closed_stdout_is_not_an_error() -> None:
    command = f"{Path(sys.executable).parent / 'swag-models'} list --json"
    process = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -n 1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "info",
        "fetch",
        "bundle",
        "verify",
        "convert",
        "classify",
        "embed",
        "merge",
        "app",
        "save",
        "push",
        "export",
    ],
)
def test_help_shows_an_example(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"example: swag-models {command}" in capsys.readouterr().out


def test_fetch_and_verify_the_shipped_model(capsys: Capture) -> None:
    assert main(["fetch", "vit_nano*", "--quiet"]) == 0
    name, path = capsys.readouterr().out.strip().split("\t")
    assert name == "vit_nano_hashtags"
    assert Path(path).is_file()
    assert main(["verify", "vit_nano_hashtags"]) == 0
    assert capsys.readouterr().out.startswith(
        f"ok\tvit_nano_hashtags\t{swag_models.get_spec(name).sources[0].sha256}"
    )


def test_fetch_uses_the_mirror_and_verify_detects_a_flipped_byte(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    isolate(tmp_path, monkeypatch)
    torch.save({"x": torch.ones(1000)}, tmp_path / "weights.torch")
    with Server() as server:
        url = server.put("/SWAG/vit_b16.torch", tmp_path / "weights.torch")
        monkeypatch.setenv("SWAG_MODELS_MIRROR", url.removesuffix("/SWAG/vit_b16.torch"))
        assert main(["fetch", "vit_b16"]) == 0
    path = Path(capsys.readouterr().out.strip().split("\t")[1])
    assert zipfile.is_zipfile(path)
    assert "CC-BY-NC-4.0" in caplog.text
    assert main(["verify", "vit_b16"]) == 0
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert main(["verify", "vit_b16"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("FAILED\tvit_b16\t")
    assert f"{path} has changed since it was verified; delete it" in captured.err


def test_verify_reports_missing_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    isolate(tmp_path, monkeypatch)
    assert main(["verify", "vit_b16"]) == 1
    assert "vit_b16: no weights on this machine" in capsys.readouterr().err


def test_convert_through_every_layout_keeps_the_weights(tmp_path: Path, capsys: Capture) -> None:
    start = swag_models.load_model("vit_nano_hashtags").state_dict()
    path = Path(swag_models.__file__).parent / "weights" / "vit_nano_hashtags.safetensors"
    for layout, name in (("swag", "a.torch"), ("torchvision", "b.pth"), ("timm", "c.safetensors")):
        assert main(["convert", str(path), str(tmp_path / name), "--to", layout]) == 0
        path = tmp_path / name
        assert capsys.readouterr().out == f"{path}\n"
    end = load_file(path)
    assert set(end) == set(start)
    assert all(torch.equal(end[key], start[key]) for key in start)


def test_convert_of_an_invalid_file_writes_nothing(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    assert (
        main(["convert", str(tmp_path / "page.pth"), str(tmp_path / "out.pth"), "--to", "timm"])
        == 1
    )
    assert "cannot be read as a weight file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["page.pth"]


def test_classify_predicts_the_same_labels_as_the_model(capsys: Capture) -> None:
    assert main([*CLASSIFY, str(SCENES), "--top-k", "2", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == [str(file) for file in FILES]
    assert [row["predictions"][0]["label"] for row in rows] == predict_labels(*FILES)
    for row in rows:
        best, second = row["predictions"]
        assert 1 >= best["probability"] >= second["probability"] >= 0


def test_classify_takes_files_and_patterns_and_skips_broken_images(
    tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "broken.png").write_bytes((SCENES / "butterfly.jpg").read_bytes()[:60])
    missing = tmp_path / "missing.png"
    assert (
        main(
            [
                *CLASSIFY,
                str(tmp_path / "broken.png"),
                str(missing),
                str(SCENES / "c[ah]*.jpg"),
                "--top-k",
                "1",
            ]
        )
        == 1
    )
    captured = capsys.readouterr()
    files = [SCENES / "car.jpg", SCENES / "chair.jpg"]
    assert [line.split()[-1] for line in captured.out.splitlines()[1::2]] == predict_labels(*files)
    assert f"skipped: {tmp_path / 'broken.png'}" in captured.err
    assert f"skipped: {missing} cannot be read: No such file or directory" in captured.err
    assert "2 of 4 images could not be read" in captured.err


def test_classify_reads_images_of_every_mode(tmp_path: Path, capsys: Capture) -> None:
    house = Image.open(SCENES / "house.jpg").convert("L")
    house.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    house.convert("P").save(
        tmp_path / "palette.gif", save_all=True, append_images=[Image.new("P", house.size)]
    )
    house.convert("RGBA").save(tmp_path / "alpha.png")
    house.rotate(90).save(
        tmp_path / "turned.png",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    )
    Image.fromarray(np.asarray(house).astype(np.uint16) * 257).save(tmp_path / "sixteen_bits.png")
    assert main([*CLASSIFY, str(tmp_path), "--top-k", "65", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 5
    assert (
        max(
            abs(compute_probabilities([house.convert("RGB")])[0] - get_probabilities(row)).max()
            for row in rows
        )
        < 0.02
    )


def test_classify_gives_the_same_results_with_every_setting(
    tmp_path: Path, capsys: Capture
) -> None:
    files = [str(path) for path in FILES]
    with tarfile.open(tmp_path / "scenes.tar", "w") as archive:
        for file in files:
            archive.add(file, Path(file).name)
    settings = [
        [],
        ["--batch-size", "3"],
        ["--workers", "1"],
        ["--fast"],
        ["--dtype", "bfloat16"],
        ["--image-size", "48"],
    ]
    expected = compute_probabilities(FILES)
    for setting in settings:
        for images in (files, [f"{SCENES}/*.jpg"], [str(tmp_path / "scenes.tar")]):
            assert main([*CLASSIFY, *images, "--top-k", "65", "--json", *setting]) == 0
            captured = capsys.readouterr()
            rows = [json.loads(line) for line in captured.out.splitlines()]
            assert [row["image"].rsplit("/", 1)[1] for row in rows] == [path.name for path in FILES]
            probabilities = torch.stack([get_probabilities(row) for row in rows])
            assert (probabilities - expected).abs().max() < 0.03  # the deviation of bfloat16
            assert captured.err == ""


@pytest.mark.parametrize("name", ["x.parquet", "x.npy"])
def test_embed_writes_a_file_and_prints_its_path(
    name: str, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / name
    assert main([*EMBED, str(SCENES), "-o", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{output}\n"
    assert captured.err == "swag-models: 10 rows\n"
    embeddings = read_embeddings(output)
    assert embeddings.names == [str(path) for path in sorted(SCENES.iterdir())]
    assert embeddings.vectors.shape == (10, 96)
    assert main([*EMBED, str(SCENES), "-o", str(output), "--quiet"]) == 0
    assert capsys.readouterr() == (f"{output}\n", "swag-models: 10 rows\n")


def test_embed_reports_skipped_images_on_every_run(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "broken.png").write_bytes(b"")
    for _ in range(2):
        arguments = [
            str(tmp_path / "broken.png"),
            str(SCENES),
            str(tmp_path / "gone.png"),
            "-o",
            str(tmp_path / "x.npy"),
        ]
        assert main([*EMBED, *arguments, "--quiet"]) == 1
        captured = capsys.readouterr()
        assert captured.out == f"{tmp_path}/x.npy\n"
        assert captured.err.splitlines() == [
            f"swag-models: skipped: {tmp_path}/broken.png is not an image that Pillow can read",
            f"swag-models: skipped: {tmp_path}/gone.png cannot be read: No such file or directory",
            "swag-models: 10 rows, 2 images could not be read",
        ]


def test_parquet_without_pyarrow_is_rejected_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    message = (
        "swag-models: error: a .parquet file (unlike .npy) needs pyarrow; "
        "install it with: pip install 'swag-models[embed]'\n"
    )
    assert (
        main(["embed", str(SCENES), "--model", "vit_b16", "-o", str(tmp_path / "x.parquet")]) == 2
    )
    assert capsys.readouterr().err == message
    assert main(["merge", str(tmp_path / "x.parquet"), "-o", str(tmp_path / "x.npy")]) == 2
    assert capsys.readouterr().err == message
    assert main([*EMBED, str(SCENES), "-o", str(tmp_path / "x.npy")]) == 0
