"""The device id out of a certificate."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from firmware import identity


def certificate(*subject: tuple[x509.ObjectIdentifier, str]) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    issuer = [x509.NameAttribute(NameOID.COMMON_NAME, "Not this one")]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(kind, text) for kind, text in subject]))
        .issuer_name(x509.Name(issuer))
        .public_key(key.public_key())
        .serial_number(2**127 + 5)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("nor.this")]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


@pytest.mark.parametrize(
    "before", [[], [(NameOID.ORGANIZATION_NAME, "Söme & Co"), (NameOID.COUNTRY_NAME, "DE")]]
)
def test_common_name(tmp_path: Path, before: list[tuple[x509.ObjectIdentifier, str]]) -> None:
    path = tmp_path / "device.crt"
    path.write_bytes(b"a comment\n" + certificate(*before, (NameOID.COMMON_NAME, "SP-000001")))
    assert identity.device_id(tmp_path / "absent", path) == "SP-000001"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
        certificate((NameOID.ORGANIZATION_NAME, "nobody")),
        certificate((NameOID.COMMON_NAME, "x"))[:200] + b"\n-----END CERTIFICATE-----\n",
    ],
)
def test_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "device.crt"
    path.write_bytes(content)
    with pytest.raises(identity.IdentityError, match=r"device\.crt"):
        identity.device_id(path)


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(identity.IdentityError, match="provision the gateway"):
        identity.device_id(tmp_path / "device.crt")
