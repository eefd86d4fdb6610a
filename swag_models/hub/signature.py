"""Signatures of folders as OpenSSF Model Signing 1.x writes them: keys, envelope, statement.

model.sig is a Sigstore bundle with one DSSE envelope. The payload of the envelope is an in-toto
statement that lists the SHA-256 of every file of the folder, and it is signed by ECDSA with a key
on P-256, P-384 or P-521.

Formats: docs.sigstore.dev/about/bundle; github.com/secure-systems-lab/dsse, protocol 1.0;
github.com/in-toto/attestation, statement 1; github.com/sigstore/model-transparency, predicate 1.0.
`publish/signing.py` writes signatures. Imports no torch.
"""

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from swag_models.decoding import parse_json
from swag_models.errors import ConfigError, SignatureError
from swag_models.formatting import count_noun, describe_error
from swag_models.paths import expand_path, read_regular
from swag_models.runtime import import_extra
from swag_models.spec import SHA256

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

T = TypeVar("T")
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MAX_KEY_SIZE = 1 << 16  # bytes
# Name of a curve in `cryptography` -> size in bits, and hash that ECDSA uses with it.
CURVES = {"secp256r1": (256, 256), "secp384r1": (384, 384), "secp521r1": (521, 512)}
ALLOWED_KEYS = "allowed: an EC key on P-256, P-384 or P-521 in PEM"


@dataclass(frozen=True)
class Signature:
    """The content of a signature file.

    Attributes:
        payload: the signed statement, JSON.
        value: the signature, DER.
        public_key: how the file describes the key; not signed.
        origin: what messages call the file.
    """

    payload: bytes
    value: bytes
    public_key: Mapping[str, Any]
    origin: str

    def verify(self, key: "EllipticCurvePublicKey") -> None:
        """Raise SignatureError unless the payload was signed with the private key of `key`."""
        from cryptography.exceptions import InvalidSignature

        pem = encode_public_key(key)
        size, hash_size = CURVES[key.curve.name]
        # Versions 1.0 wrote the key itself, later ones its SHA-256.
        expected = {
            "hint": hash_public_key(key),
            "rawBytes": base64.b64encode(pem).decode(),
            "keyDetails": f"PKIX_ECDSA_P{size}_SHA_{hash_size}",
        }
        if any(value != expected[name] for name, value in self.public_key.items()):
            raise SignatureError(f"{self.origin} states another key than the trusted one")
        try:
            key.verify(self.value, encode_envelope(self.payload), find_algorithm(key))
        except InvalidSignature:
            raise SignatureError(
                f"{self.origin} was changed, or was not made with the trusted key"
            ) from None

    def read_digests(self) -> dict[str, str]:
        """Return the SHA-256 of every listed file, by its path in the folder, with `/`.

        Raises:
            SignatureError: the payload is not a statement of Model Signing 1.x about the SHA-256
                of files, or it lists a name twice or outside the folder.
        """
        try:
            return _read_statement(_parse_json(self.payload))
        except (ValueError, RecursionError) as error:
            raise SignatureError(f"{self.origin} is not supported: {error}") from None


def parse_signature(content: bytes, origin: str) -> Signature:
    """Parse a signature file. Nothing in it is verified yet.

    Args:
        content: of the file.
        origin: what messages call the file.

    Raises:
        SignatureError: it has another format or is damaged.
    """
    try:
        bundle = _parse_json(content)
        _check_fields("the bundle", bundle, {"mediaType", "verificationMaterial", "dsseEnvelope"})
        _check_equal("mediaType", bundle["mediaType"], MEDIA_TYPE)
        material, envelope = bundle["verificationMaterial"], bundle["dsseEnvelope"]
        _check_fields("verificationMaterial", material, {"publicKey"}, {"tlogEntries"})
        _check_equal("tlogEntries", material.get("tlogEntries", []), [])
        key = material["publicKey"]
        _check_fields("publicKey", key, set(), {"hint", "rawBytes", "keyDetails"})
        if not key.keys() & {"hint", "rawBytes"}:
            raise ValueError("publicKey has no hint")
        _check_fields("dsseEnvelope", envelope, {"payload", "payloadType", "signatures"})
        _check_equal("payloadType", envelope["payloadType"], PAYLOAD_TYPE)
        (signature,) = _get_list(envelope, "signatures", length=1)
        _check_fields("the signature", signature, {"sig"}, {"keyid"})
        if signature.get("keyid") not in ("", None):
            raise ValueError(f"keyid is {signature['keyid']!r}, not empty")
        payload = _decode_base64("payload", envelope["payload"])
        return Signature(payload, _decode_base64("sig", signature["sig"]), key, origin)
    except (ValueError, RecursionError) as error:
        raise SignatureError(f"{origin} is not a signature of Model Signing 1.x: {error}") from None


def load_public_key(path: str | os.PathLike[str]) -> "EllipticCurvePublicKey":
    """Read a public key from a PEM file.

    Raises:
        ConfigError: the file has no EC key on P-256, P-384 or P-521, or cannot be read, or the
            extra [sign] is not installed.
    """
    content = read_key_file(path, "trusted_key")
    serialization = import_primitives("serialization")
    if b" PRIVATE KEY" in content:
        raise ConfigError(
            f"{os.fspath(path)} is a private key; give the public one, made by: "
            "openssl ec -in PRIVATE -pubout -out PUBLIC"
        )
    try:
        key = serialization.load_pem_public_key(content)
    except key_errors() as error:
        raise ConfigError(describe_key(path, f"is not a public key ({error})")) from None
    check_curve(key, path)
    return key


def read_key_file(path: str | os.PathLike[str], option: str) -> bytes:
    """Return the content of a key file.

    Args:
        path: the file.
        option: the argument that names it, for the message.

    Raises:
        ConfigError: it cannot be read, or is too large for a key.
    """
    path = expand_path(path, option)
    try:
        content = read_regular(path, MAX_KEY_SIZE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {option} {path}: {describe_error(error)}") from None
    if len(content) > MAX_KEY_SIZE:
        raise ConfigError(describe_key(path, "is too large for a key"))
    return content


def check_curve(key: Any, path: str | os.PathLike[str]) -> None:
    """Raise ConfigError if a key, public or private, is not an EC key on a supported curve."""
    curve = getattr(key, "curve", None)
    if getattr(curve, "name", None) not in CURVES:
        kind = curve.name if curve else type(key).__name__.strip("_")
        raise ConfigError(describe_key(path, f"is a key of another kind ({kind})"))


def describe_key(path: str | os.PathLike[str], problem: str) -> str:
    """Return the message for a key that cannot be used."""
    return f"{os.fspath(path)} {problem.splitlines()[0]}; {ALLOWED_KEYS}"


def key_errors() -> tuple[type[Exception], ...]:
    """Return what `cryptography` raises for a file that is not a key, or for a wrong password."""
    exceptions = import_extra("cryptography.exceptions", "swag-models[sign]", "signing")
    return (ValueError, TypeError, exceptions.UnsupportedAlgorithm)


def import_primitives(module: str) -> Any:
    """Import a module of `cryptography.hazmat.primitives`."""
    name = f"cryptography.hazmat.primitives.{module}"
    return import_extra(name, "swag-models[sign]", "signing")


def find_algorithm(key: Any) -> Any:
    """Return the signature algorithm for a key: ECDSA with the hash that belongs to its curve."""
    algorithm = getattr(import_primitives("hashes"), f"SHA{CURVES[key.curve.name][1]}")
    return import_primitives("asymmetric.ec").ECDSA(algorithm())


def encode_public_key(key: "EllipticCurvePublicKey") -> bytes:
    """Return a public key as PEM."""
    serialization = import_primitives("serialization")
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def hash_public_key(key: "EllipticCurvePublicKey") -> str:
    """Return the name of a key in signatures: the SHA-256 of its PEM form, in hex."""
    return hashlib.sha256(encode_public_key(key)).hexdigest()


def encode_envelope(payload: bytes) -> bytes:
    """Return the bytes that are signed for a payload: DSSE's pre-authentication encoding."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def hash_digests(digests: Mapping[str, str]) -> str:
    """Return the digest of a folder: the SHA-256 of its files' digests, in the listed order."""
    return hashlib.sha256(bytes.fromhex("".join(digests.values()))).hexdigest()


def is_file_name(name: object) -> bool:
    """Whether `name` is the canonical path of a file below a folder, with `/`."""
    return (
        type(name) is str
        and name not in ("", ".")
        and not name.startswith("/")
        and ".." not in name.split("/")
        and "\0" not in name
        and str(PurePosixPath(name)) == name
        and name.encode(errors="replace").decode() == name  # no bytes that are not UTF-8
    )


def _read_statement(statement: Any) -> dict[str, str]:
    """Return the SHA-256 by name; raises ValueError."""
    # Unlike the fields of the bundle, these are signed: unknown ones, which later versions may add,
    # are ignored, as both formats require.
    _check_equal("_type", _get(statement, "_type", str), STATEMENT_TYPE)
    _check_equal("predicateType", _get(statement, "predicateType", str), PREDICATE_TYPE)
    predicate = _get(statement, "predicate", dict)
    serialization = _get(predicate, "serialization", dict)
    _check_equal("method", serialization.get("method"), "files")
    _check_equal("hash_type", serialization.get("hash_type"), "sha256")
    digests: dict[str, str] = {}
    for resource in _get_list(predicate, "resources"):
        name, digest = _get(resource, "name", str), _get(resource, "digest", str)
        _check_equal("algorithm", _get(resource, "algorithm", str), "sha256")
        if not is_file_name(name):
            raise ValueError(f"invalid file name {name!r}")
        if name in digests:
            raise ValueError(f"{name} is listed twice")
        if not SHA256.fullmatch(digest):
            raise ValueError(f"invalid SHA-256 {digest!r} of {name}")
        digests[name] = digest
    if not digests:
        raise ValueError("it lists no files")
    (subject,) = _get_list(statement, "subject", length=1)
    root = _get(_get(subject, "digest", dict), "sha256", str)
    _check_equal("the digest of the folder", root, hash_digests(digests))
    return digests


def _parse_json(content: bytes) -> Any:
    """Parse JSON in UTF-8; raises ValueError for a name that occurs twice in an object."""
    return parse_json(content.decode(), unique_keys=True)


def _check_fields(
    label: str, value: Any, required: set[str], optional: set[str] | None = None
) -> None:
    """Raise ValueError unless a JSON value is an object with these fields and no others."""
    if not isinstance(value, dict):
        raise ValueError(f"{label} is not an object")
    if missing := sorted(required - value.keys()):
        raise ValueError(f"{label} has no {', '.join(missing)}")
    if unknown := sorted(value.keys() - required - (optional or set())):
        raise ValueError(f"{label} has unknown fields: {', '.join(unknown)}")


def _check_equal(label: str, value: object, expected: object) -> None:
    if value != expected:
        raise ValueError(f"{label} is {value!r}, not {expected!r}")


def _get(value: Any, name: str, kind: type[T]) -> T:
    """Return a field of a JSON object; raises ValueError if it is missing or of another type."""
    field = value.get(name) if isinstance(value, dict) else None
    if type(field) is not kind:
        raise ValueError(f"{name} is {field!r}, not of the type {kind.__name__}")
    return field


def _get_list(value: Any, name: str, length: int | None = None) -> list[Any]:
    """Return a field that must be a list, with `length` items if that is not None."""
    items = _get(value, name, list)
    if length is not None and len(items) != length:
        raise ValueError(f"{name} has {count_noun(len(items), 'item')}, not {length}")
    return items


def _decode_base64(label: str, text: object) -> bytes:
    """Decode base64, in its only form: a changed letter is a changed value."""
    if type(text) is not str:
        raise ValueError(f"{label} is not a text")
    content = base64.b64decode(text.encode(), validate=True)
    if base64.b64encode(content).decode() != text:
        raise ValueError(f"{label} is not in the usual form of base64")
    return content
