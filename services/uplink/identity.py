"""The gateway's identity: key, certificate, the CA it trusts. The certificate's CN is the device id."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from firmware import paths
from firmware.wire import topics


class IdentityError(ValueError):
    """There is no usable identity; the text says what is wrong and what helps."""


class Identity(NamedTuple):
    device: str
    key: Path
    certificate: Path
    ca: Path

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or higher, own certificate, server checked by name against this CA alone. Raises IdentityError."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:  # ssl.SSLError is one
            raise IdentityError(
                f"key, certificate and CA in {self.key.parent} can't be used ({error}); provision the gateway again"
            ) from error
        return context


def load(folder: Path | None = None) -> Identity:
    """Raises IdentityError."""
    folder = folder or paths.IDENTITY
    key, certificate, ca = (folder / name for name in ("device.key", "device.crt", "ca.crt"))
    for path in (key, certificate, ca):
        if not path.exists():
            raise IdentityError(f"{path} is missing: the gateway has no identity yet; provision it")
    try:
        device = common_name(ssl.PEM_cert_to_DER_cert(certificate.read_text(encoding="ascii").strip()))
    except (OSError, ValueError, IndexError) as error:
        raise IdentityError(f"{certificate} can't be read ({error}); provision the gateway again") from error
    if not topics.is_device(device):
        raise IdentityError(
            f"{certificate} names {device!r}, which is no device id; provision the gateway again"
        )
    return Identity(device, key, certificate, ca)


def common_name(certificate: bytes) -> str:
    """CN of the subject of an X.509 certificate (DER; RFC 5280, 4.1). Raises ValueError or IndexError.

    By hand: the `ssl` module shows only the peer's certificate, and `cryptography` would double our memory.
    """
    whole, _ = _element(certificate, 0, 0x30)
    to_be_signed, _ = _element(whole, 0, 0x30)
    at = 0
    if to_be_signed[0] == 0xA0:
        _, at = _element(to_be_signed, at)  # version
    for _ in range(4):  # serial number, signature algorithm, issuer, validity
        _, at = _element(to_be_signed, at)
    subject, _ = _element(to_be_signed, at, 0x30)
    at = 0
    while at < len(subject):
        attributes, at = _element(subject, at, 0x31)
        attribute, _ = _element(attributes, 0, 0x30)
        oid, value_at = _element(attribute, 0, 0x06)
        if oid == b"\x55\x04\x03":
            return _element(attribute, value_at)[0].decode()
    raise ValueError("its subject has no common name")


def _element(data: bytes, at: int, tag: int | None = None) -> tuple[bytes, int]:
    """Content of the DER element at a place, and the place behind it."""
    if tag is not None and data[at] != tag:
        raise ValueError(f"not a certificate: tag {data[at]:#x} where {tag:#x} belongs")
    length, start = data[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[at + 2 : start], "big")
    if start + length > len(data):
        raise ValueError("it is cut")
    return data[start : start + length], start + length
