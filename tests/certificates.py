"""TLS certificates for the test server, signed by a new certificate authority."""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make_certificates(folder: Path) -> tuple[Path, Path]:
    """Write PEM files into `folder`.

    Returns:
        (certificate of the authority, certificate and key for 127.0.0.1 that it signed).
    """
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _make_builder("test authority", root_key, root_key)
    root = root.add_extension(_certificate_signing_usage(), critical=True)
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    server = _make_builder("test server", key, root_key)
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    server = server.add_extension(x509.SubjectAlternativeName(names), critical=False)
    server = server.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)

    pem = serialization.Encoding.PEM
    root_path, server_path = folder / "authority.pem", folder / "server.pem"
    root_path.write_bytes(root.sign(root_key, hashes.SHA256()).public_bytes(pem))
    private_key = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificate = server.sign(root_key, hashes.SHA256()).public_bytes(pem)
    server_path.write_bytes(private_key + certificate)
    return root_path, server_path


def _make_builder(
    name: str, key: ec.EllipticCurvePrivateKey, root_key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    """Return a builder with the fields that both certificates have."""
    now = datetime.now(timezone.utc)
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(_make_name(name))
        .issuer_name(_make_name("test authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer_id, critical=False)
    )


def _make_name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _certificate_signing_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
