"""`swag-models app` with wrong options: one line on stderr, before there is a page."""

import socket
import subprocess
import sys

import pytest

from swag_models.cli import main

Capture = pytest.CaptureFixture[str]


def test_a_port_in_use_is_named(capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 2
    assert (
        f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another port"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "invalid port 70000: allowed: 1 to 65535"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid port 7860: "),
        (["--auth-file", "no/such"], "cannot read the users from no/such: No such file"),
        (["--folder", "no/such"], "no/such is not a folder; pass a folder of images"),
        (["--model", "resnet50"], "unknown model 'resnet50'"),
        (["--root-path", "demo"], "invalid path 'demo' for --root-path: allowed: a path such as "),
        (["--merge-tokens", "-1"], "merge_tokens is -1; give the number of tokens that each"),
        (
            ["--model", "regnety_nano_hashtags", "--merge-tokens", "2"],
            "merge_tokens is 2; a RegNet has no tokens",
        ),
        (["--allow-host", "a:1"], "invalid name 'a:1' for --allow-host: allowed: the full name or"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(["app", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"swag-models: error: {message}")
    assert output.err.count("\n") == 1


def test_missing_gradio_is_reported_with_the_command_to_install_it() -> None:
    code = """
import sys
sys.modules["gradio"] = None  # as if it were not installed
from swag_models.cli import main
sys.exit(main(["app", "--port", "0"]))
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == (
        "swag-models: error: the page needs gradio; "
        "install it with: pip install 'swag-models[app]'\n"
    )
