"""Sign the files of a model, in the format of OpenSSF Model Signing 1.x. Imports no torch.

The format is described in `hub/signature.py`, which verifies signatures.
"""

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swag_models.atomic import atomic_write
from swag_models.errors import ConfigError, PublishError, SignatureError, plain_arguments
from swag_models.formatting import describe_error
from swag_models.hub.hf_format import SIGNATURE_FILE
from swag_models.hub.signature import (
    MEDIA_TYPE,
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    check_curve,
    describe_key,
    encode_envelope,
    find_algorithm,
    hash_digests,
    hash_public_key,
    import_primitives,
    is_file_name,
    key_errors,
    read_key_file,
)
from swag_models.hub.signed_folder import UNSIGNED_NAMES, hash_folder_files, list_files
from swag_models.paths import expand_path

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

PASSWORD_VARIABLE = "SWAG_MODELS_KEY_PASSWORD"  # nosec B105 # the name of a variable


@plain_arguments
def sign_folder(folder: str | os.PathLike[str], key: str | os.PathLike[str]) -> Path:
    """Sign all files of a folder, and write the signature into it as model.sig.

    Not signed are `.git`, `.gitattributes`, `.github` and `.gitignore` at the top of the folder.

    Args:
        folder: the folder; a signature in it is replaced.
        key: PEM file of an EC private key on P-256, P-384 or P-521. The password of an encrypted
            one is read from SWAG_MODELS_KEY_PASSWORD.

    Returns:
        Path of the signature.

    Raises:
        ConfigError: the key cannot be used, or the extra [sign] is not installed.
        PublishError: the folder contains nothing to sign, links or special files, or a file that
            cannot be read; or the signature cannot be written.
    """
    return write_signature(expand_path(folder, "folder"), load_private_key(key))


def write_signature(
    folder: Path, key: "EllipticCurvePrivateKey", known: Mapping[str, str] | None = None
) -> Path:
    """Sign a folder with a key that was read before; see `sign_folder`.

    Args:
        folder: the folder.
        key: from `load_private_key`.
        known: SHA-256 of files that need not be hashed again, by name.
    """
    known = known or {}
    try:
        paths = list_files(folder)
        hashed = hash_folder_files(
            {name: path for name, path in paths.items() if name not in known}
        )
    except SignatureError as error:
        raise PublishError(f"not signed: {error}") from None
    digests = {name: known[name] if name in known else hashed[name].sha256 for name in paths}
    content = make_signature(digests, folder.resolve().name, key)
    path = folder / SIGNATURE_FILE
    try:
        with atomic_write(path, unique=True) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise PublishError(f"cannot write {path}: {describe_error(error)}") from None
    return path


def make_signature(digests: Mapping[str, str], name: str, key: "EllipticCurvePrivateKey") -> bytes:
    """Return the content of a signature file.

    Args:
        digests: SHA-256 of each file, by its path in the folder.
        name: name of the model, for information only.
        key: from `load_private_key`.

    Raises:
        PublishError: there are no files, or the name of one cannot be written in the format.
    """
    if not digests:
        raise PublishError(f"not signed: {name} contains no files")
    if invalid := [file for file in digests if not is_file_name(file)]:
        raise PublishError(f"not signed: file name {invalid[0]!r} is not UTF-8; rename it")
    # The digest of the folder depends on the order, which is the same as in the tool.
    digests = dict(sorted(digests.items(), key=lambda item: item[0].split("/")))
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": _make_printable(name), "digest": {"sha256": hash_digests(digests)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "resources": [
                {"algorithm": "sha256", "digest": digest, "name": file}
                for file, digest in digests.items()
            ],
            "serialization": {
                "method": "files",
                "allow_symlinks": False,
                "hash_type": "sha256",
                "ignore_paths": list(UNSIGNED_NAMES),
            },
        },
    }
    payload = json.dumps(statement, indent=2).encode()
    signature = key.sign(encode_envelope(payload), find_algorithm(key))
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": hash_public_key(key.public_key())},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, separators=(",", ":")).encode()


def load_private_key(path: str | os.PathLike[str]) -> "EllipticCurvePrivateKey":
    """Read a private key from a PEM file.

    Raises:
        ConfigError: the file has no EC private key on P-256, P-384 or P-521, or needs a password,
            or cannot be read, or the extra [sign] is not installed.
    """
    content = read_key_file(path, "key")
    serialization: Any = import_primitives("serialization")
    encrypted = b"ENCRYPTED" in content
    password = os.environ.get(PASSWORD_VARIABLE)
    if encrypted and password is None:
        raise ConfigError(f"{os.fspath(path)} is encrypted; set {PASSWORD_VARIABLE}")
    try:
        key = serialization.load_pem_private_key(
            content, os.fsencode(password) if encrypted and password is not None else None
        )
    except key_errors() as error:
        reason = f"or the password in {PASSWORD_VARIABLE} is wrong" if encrypted else str(error)
        raise ConfigError(describe_key(path, f"is not a private key ({reason})")) from None
    check_curve(key, path)
    return key


def _make_printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()
