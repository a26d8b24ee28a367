"""Development certificate authority: made at first run, kept in the state folder, never committed.

EC P-256 throughout. One root signs the servers' certificates (names and addresses as SAN, RFC 6125) and the
clients' (device id or process name as CN, clientAuth only). Validity starts in 2020, because a gateway without
a clock battery can believe in a date well in the past.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from firmware.wire import topics

START = datetime(2020, 1, 1, tzinfo=UTC)
END = datetime(2049, 12, 31, tzinfo=UTC)
INGEST = "cloud-ingest"
API = "cloud-api"
_RESERVED = "cloud-"


class CaError(ValueError):
    """What was asked of the CA can't be done; the text says why and what helps."""


@dataclass(frozen=True)
class Certified:
    """A private key with its certificate, both PEM."""

    key: bytes
    certificate: bytes

    def write(self, folder: Path, name: str) -> None:
        """`<name>.key` (mode 0600) and `<name>.crt`."""
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{name}.key", self.key, 0o600)
        _write(folder / f"{name}.crt", self.certificate, 0o644)


class Authority:
    """The root. `open` reads it or, the first time, makes it."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def new(cls, name: str = "Sallyport development CA") -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        certificate = (
            _builder(subject, subject, key.public_key(), START, END)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign=False, certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Raises CaError when the stored CA is damaged: a new one would lock all gateways out."""
        key_file, certificate_file = folder / "ca.key", folder / "ca.crt"
        if not key_file.exists() and not certificate_file.exists():
            authority = cls.new()
            Certified(_pem(authority._key), authority.certificate).write(folder, "ca")
            return authority
        try:
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        except (OSError, ValueError) as error:
            raise CaError(
                f"the CA in {folder} can't be read: {error}. Restore ca.key and ca.crt from a backup, or delete "
                "both to start a new CA; then every gateway needs a new certificate"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise CaError(
                f"{key_file} and {certificate_file} do not belong together; restore both from a backup"
            )
        return cls(key, certificate)

    @property
    def certificate(self) -> bytes:
        """The root certificate, PEM: what others trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def server(self, name: str, *also: str, start: datetime = START, end: datetime = END) -> Certified:
        """Certificate of a server known by host names and IP addresses."""
        return self._issue(name, ExtendedKeyUsageOID.SERVER_AUTH, [name, *also], start, end)

    def client(self, name: str, *, start: datetime = START, end: datetime = END) -> Certified:
        """Certificate of a client; the broker takes its CN as the user name."""
        return self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, [], start, end)

    def device(self, device: str, *, start: datetime = START, end: datetime = END) -> Certified:
        """Certificate of a gateway. Raises CaError when `device` can't be a device id."""
        if not topics.is_device(device) or device.startswith(_RESERVED):
            raise CaError(
                f"{device!r} can't be a device id: use letters, digits, '.', '-' and '_', at most 64, starting with "
                f"a letter or digit, and not with {_RESERVED!r}"
            )
        return self.client(device, start=start, end=end)

    def _issue(
        self, name: str, usage: x509.ObjectIdentifier, san: list[str], start: datetime, end: datetime
    ) -> Certified:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(_name(name), self._certificate.subject, key.public_key(), start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=True, certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if san:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(n) for n in san]), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        return Certified(_pem(key), certificate.public_bytes(serialization.Encoding.PEM))


def issue_device(authority: Authority, device: str, out: Path) -> None:
    """Write a gateway's identity: device.key, device.crt, ca.crt."""
    authority.device(device).write(out, "device")
    _write(out / "ca.crt", authority.certificate, 0o644)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, sign: bool, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file; its mode is right from the first byte on."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    temporary.replace(path)
