"""The tool model-signing accepts our signatures and we its; keys; `save`, the command, races."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from signing_changes import WEIGHTS
from signing_support import CURVES, KeyPair, edit_bundle, read_bundle, read_statement, write_keys
from tiny import load_tiny

import swag_models.hub.signed_model
import swag_models.state_dict
from swag_models import load_model
from swag_models.cli import main
from swag_models.errors import ConfigError, PublishError, SignatureError, UnknownModelError
from swag_models.hub.hf_format import CONFIG_FILE, SIGNATURE_FILE
from swag_models.hub.signature import encode_public_key, load_public_key
from swag_models.inference import Classifier, Embedder
from swag_models.publish import save, sign_folder

Capture = pytest.CaptureFixture[str]
NANO = "vit_nano_hashtags"

pytestmark = pytest.mark.usefixtures("caches")


def run_tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the tool of OpenSSF Model Signing; the test is skipped where it is not installed."""
    pytest.importorskip("model_signing", reason="model-signing is in the dependency group dev")
    command = [sys.executable, "-W", "ignore", "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def tool_verifies(folder: Path, keys: KeyPair) -> bool:
    signature = folder / SIGNATURE_FILE
    done = run_tool("verify", "key", "--public_key", keys.public, "--signature", signature, folder)
    assert ("Verification succeeded" in done.stdout) == (done.returncode == 0), done.stderr
    return done.returncode == 0


def sign_with_tool(folder: Path, keys: KeyPair, *options: str) -> None:
    signature = folder / SIGNATURE_FILE
    done = run_tool(
        "sign", "key", "--private_key", keys.private, "--signature", signature, *options, folder
    )
    assert done.returncode == 0, done.stderr


class TestTool:
    """Against the `key` method of model-signing."""

    @pytest.mark.parametrize("curve", CURVES)
    def test_both_verify_what_the_other_signs(
        self, curve: str, folder: Path, tmp_path: Path
    ) -> None:
        keys = write_keys(tmp_path / "keys", ec.generate_private_key(CURVES[curve]()))
        sign_folder(folder, keys.private)
        ours, our_statement = read_bundle(folder), read_statement(folder)
        assert tool_verifies(folder, keys)
        sign_with_tool(folder, keys)
        assert load_model(folder, trusted_key=keys.public).num_classes == 10
        # The tool takes the ignored paths from a set, so their order varies.
        theirs, their_statement = read_bundle(folder), read_statement(folder)
        for statement in (our_statement, their_statement):
            statement["predicate"]["serialization"]["ignore_paths"].sort()
        assert our_statement == their_statement
        for bundle in (ours, theirs):
            for name in ("payload", "signatures"):
                del bundle["dsseEnvelope"][name]
        assert ours == theirs

    def test_the_tool_detects_a_changed_file(self, folder: Path, keys: KeyPair) -> None:
        (folder / "README.md").write_text("other")
        assert not tool_verifies(folder, keys)

    def test_a_sharded_model_is_verified(self, tmp_path: Path, keys: KeyPair) -> None:
        folder = save(load_tiny(), tmp_path / "m", max_shard_size=20_000, sign=keys.private)
        assert tool_verifies(folder, keys)
        load_model(folder, trusted_key=keys.public)
        shard = sorted(folder.glob("*.safetensors"))[1]
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
        with pytest.raises(SignatureError, match=f"{shard.name} is not the signed file"):
            load_model(folder, trusted_key=keys.public)

    def test_files_of_git_are_verified_if_they_are_signed(
        self, folder: Path, keys: KeyPair
    ) -> None:
        sign_with_tool(folder, keys, "--no-ignore-git-paths")
        load_model(folder, trusted_key=keys.public)
        (folder / ".git" / "HEAD").write_text("other")
        with pytest.raises(SignatureError, match="HEAD is not the signed file"):
            load_model(folder, trusted_key=keys.public)


def test_bundles_of_version_1_0_are_verified(folder: Path, keys: KeyPair) -> None:
    """They contain the key itself, and null as the key's id."""
    import base64

    pem = encode_public_key(load_public_key(keys.public))

    def edit(bundle: dict[str, Any]) -> None:
        bundle["dsseEnvelope"]["signatures"][0]["keyid"] = None
        bundle["verificationMaterial"] = {
            "publicKey": {
                "rawBytes": base64.b64encode(pem).decode(),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
            }
        }

    edit_bundle(folder, edit)
    load_model(folder, trusted_key=keys.public)


class TestSave:
    def test_a_signed_folder_loads_as_the_same_model(self, tmp_path: Path, keys: KeyPair) -> None:
        model = load_tiny()
        folder = save(model, tmp_path / "m", sign=keys.private)
        loaded = load_model(folder, trusted_key=keys.public)
        state = loaded.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert loaded.spec == load_model(folder).spec

    def test_saving_again_without_a_key_removes_the_signature(
        self, tmp_path: Path, keys: KeyPair
    ) -> None:
        folder = save(load_tiny(), tmp_path / "m", sign=keys.private)
        save(load_tiny(), folder)
        with pytest.raises(SignatureError, match=r"is not signed: it has no model\.sig"):
            load_model(folder, trusted_key=keys.public)

    def test_an_unusable_key_is_an_error_before_anything_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"cannot read key .*no\.pem: No such file"):
            save(load_tiny(), tmp_path / "m", sign=tmp_path / "no.pem")
        assert not (tmp_path / "m").exists()

    def test_a_folder_without_files_cannot_be_signed(self, tmp_path: Path, keys: KeyPair) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(PublishError, match="not signed: empty contains no files"):
            sign_folder(tmp_path / "empty", keys.private)
        with pytest.raises(PublishError, match=r"not signed: cannot read .*none: No such file"):
            sign_folder(tmp_path / "none", keys.private)

    def test_links_cannot_be_signed(self, folder: Path, keys: KeyPair) -> None:
        os.symlink(WEIGHTS, folder / "same")
        with pytest.raises(PublishError, match=r"not signed: .*same is a link"):
            sign_folder(folder, keys.private)


class TestKeys:
    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            (rsa.generate_private_key(65537, 2048), r"of another kind \(RSAP\w+Key\)"),
            (ed25519.Ed25519PrivateKey.generate(), r"of another kind \(Ed25519P\w+Key\)"),
            (ec.generate_private_key(ec.SECP256K1()), r"of another kind \(secp256k1\)"),
        ],
        ids=["RSA", "Ed25519", "secp256k1"],
    )
    def test_other_kinds_of_keys_are_refused(
        self, kind: Any, expected: str, folder: Path, tmp_path: Path
    ) -> None:
        keys = write_keys(tmp_path / "keys", kind)
        match = rf"\.pem is a key {expected}; allowed: an EC key on P-256, P-384 or P-521 in PEM"
        with pytest.raises(ConfigError, match=match):
            sign_folder(folder, keys.private)
        with pytest.raises(ConfigError, match=match):
            load_model(folder, trusted_key=keys.public)

    @pytest.mark.parametrize("content", [b"", b"\xff" * 99, b"x" * 10**5, b"-----BEGIN PUBLIC KEY"])
    def test_a_file_that_is_not_a_key_is_refused(
        self, content: bytes, folder: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "key.pem"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"key\.pem is .*; allowed: an EC key"):
            load_model(folder, trusted_key=path)
        with pytest.raises(ConfigError, match=r"key\.pem is .*; allowed: an EC key"):
            sign_folder(folder, path)

    def test_the_wrong_key_of_a_pair_is_named(self, folder: Path, keys: KeyPair) -> None:
        with pytest.raises(ConfigError, match=r"is a private key; give the public one.*-pubout"):
            load_model(folder, trusted_key=keys.private)
        with pytest.raises(ConfigError, match="is not a private key"):
            sign_folder(folder, keys.public)

    def test_a_pipe_is_not_waited_for(self, folder: Path, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ConfigError, match="is a named pipe, not a regular file"):
            load_model(folder, trusted_key=tmp_path / "pipe")

    def test_an_encrypted_key_needs_its_password(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = write_keys(tmp_path / "keys", password="secret")
        with pytest.raises(ConfigError, match="is encrypted; set SWAG_MODELS_KEY_PASSWORD"):
            sign_folder(folder, keys.private)
        monkeypatch.setenv("SWAG_MODELS_KEY_PASSWORD", "wrong")
        with pytest.raises(ConfigError, match="the password in SWAG_MODELS_KEY_PASSWORD is wrong"):
            sign_folder(folder, keys.private)
        monkeypatch.setenv("SWAG_MODELS_KEY_PASSWORD", "secret")
        sign_folder(folder, keys.private)
        load_model(folder, trusted_key=keys.public)

    def test_a_missing_package_is_named_with_the_command_that_installs_it(
        self, folder: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in sys.modules if name.startswith("cryptography")]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, "cryptography", None)
        expected = r"signing needs cryptography; install it with: pip install 'swag-models\[sign\]'"
        for action in (
            lambda: load_model(folder, trusted_key=keys.public),
            lambda: sign_folder(folder, keys.private),
        ):
            with pytest.raises(ConfigError, match=expected):
                action()


class TestWhatIsLoaded:
    """It is what was verified, even if another process changes the folder."""

    @pytest.mark.parametrize("in_place", [False, True])
    def test_weights_that_change_after_verification_are_refused(
        self, in_place: bool, folder: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = folder / WEIGHTS
        read, before = swag_models.state_dict.read_weights, path.stat()

        def read_changed(*arguments: Any, **options: Any) -> Any:
            content = path.read_bytes()[:-1] + b"x"
            if not in_place:
                path.unlink()
            path.write_bytes(content)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            return read(*arguments, **options)

        monkeypatch.setattr(swag_models.state_dict, "read_weights", read_changed)
        with pytest.raises(SignatureError, match=f"{WEIGHTS} was changed while it was loaded"):
            load_model(folder, trusted_key=keys.public)

    def test_a_config_that_changes_after_verification_is_not_parsed(
        self, folder: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        verify = swag_models.hub.signed_model.verify_folder

        def verify_and_change(*arguments: Any, **options: Any) -> Any:
            verified = verify(*arguments, **options)
            (folder / CONFIG_FILE).write_text("{")
            return verified

        monkeypatch.setattr(swag_models.hub.signed_model, "verify_folder", verify_and_change)
        with pytest.raises(SignatureError, match=r"config\.json was changed after it was verified"):
            load_model(folder, trusted_key=keys.public)

    @pytest.mark.parametrize("options", [{}, {"max_shard_size": 20_000}], ids=["file", "shards"])
    def test_a_file_that_is_overwritten_later_does_not_change_the_model(
        self, options: dict[str, int], keys: KeyPair, tmp_path: Path
    ) -> None:
        folder = save(load_tiny(), tmp_path / "m", sign=keys.private, **options)
        model = load_model(folder, trusted_key=keys.public)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for path in folder.glob("*.safetensors"):
            with path.open("r+b") as file:
                file.write(b"\xff" * path.stat().st_size)
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)

    def test_weights_that_config_does_not_state_are_refused(
        self, folder: Path, keys: KeyPair, tmp_path: Path
    ) -> None:
        torch.manual_seed(1)
        other = save(load_tiny(), tmp_path / "other")
        shutil.copy(other / WEIGHTS, folder)
        sign_folder(folder, keys.private)
        with pytest.raises(SignatureError, match=rf"{WEIGHTS} is not the file that config\.json"):
            load_model(folder, trusted_key=keys.public)


class TestOptions:
    @pytest.mark.parametrize("name", [NANO, load_tiny().spec], ids=["catalog", "spec"])
    def test_models_without_a_folder_have_no_signature(self, name: Any, keys: KeyPair) -> None:
        with pytest.raises(ConfigError, match="has hashes and no signature"):
            load_model(name, trusted_key=keys.public)

    def test_other_weights_are_not_signed(self, folder: Path, keys: KeyPair) -> None:
        with pytest.raises(ConfigError, match="weights= is not signed"):
            load_model(folder, weights=folder / WEIGHTS, trusted_key=keys.public)

    def test_names_of_no_folder(self, keys: KeyPair, tmp_path: Path) -> None:
        with pytest.raises(UnknownModelError, match="does not exist"):
            load_model(tmp_path / "none", trusted_key=keys.public)
        with pytest.raises(ConfigError, match="invalid model of type NoneType"):
            load_model(None, trusted_key=keys.public)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="invalid trusted_key"):
            load_model(tmp_path, trusted_key=3)  # type: ignore[arg-type]

    def test_classifier_and_embedder_verify(
        self, tmp_path: Path, keys: KeyPair, other_keys: KeyPair
    ) -> None:
        folder = save(load_tiny(), tmp_path / "m", classes=list("abcdefghij"), sign=keys.private)
        assert Classifier(folder, trusted_key=keys.public).classes == tuple("abcdefghij")
        Embedder(folder, trusted_key=keys.public)
        (folder / CONFIG_FILE).write_text("{")
        for pipeline in (Classifier, Embedder):
            with pytest.raises(SignatureError, match=r"config\.json is not the signed file"):
                pipeline(folder, trusted_key=keys.public)


def test_the_command_signs_and_verifies(folder: Path, keys: KeyPair, capsys: Capture) -> None:
    assert main(["sign", str(folder), "--key", str(keys.private)]) == 0
    assert capsys.readouterr().out == f"{folder / SIGNATURE_FILE}\n"
    assert main(["verify", str(folder), "--key", str(keys.public)]) == 0
    lines = capsys.readouterr().out.splitlines()
    digests = {entry["digest"] for entry in read_statement(folder)["predicate"]["resources"]}
    assert {line.split("\t")[2] for line in lines} == digests
    assert lines[0].split("\t") == [
        "ok",
        str(folder),
        lines[0].split("\t")[2],
        f"{folder}/README.md",
    ]
    (folder / "README.md").write_text("other")
    assert main(["verify", str(folder), "--key", str(keys.public)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"swag-models: error: {folder}/README.md is not the signed file")
    assert output.err.count("\n") == 1
    assert main(["verify", "--key", str(keys.public)]) == 2
    assert "--key needs a folder" in capsys.readouterr().err


def test_the_command_saves_a_signed_folder(tmp_path: Path, keys: KeyPair) -> None:
    folder = tmp_path / "m"
    assert main(["save", NANO, str(folder), "--sign", str(keys.private)]) == 0
    assert json.loads((folder / CONFIG_FILE).read_text())
    assert main(["verify", str(folder), "--key", str(keys.public)]) == 0
