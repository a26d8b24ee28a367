"""Who this gateway is: the device id, which is the common name of its certificate."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from pathlib import Path

from firmware import paths

PUBLISHED = paths.RUN / "device.crt"
"""Copy of the certificate for services that have no access to the identity; put there at boot."""

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_COMMON_NAME = bytes.fromhex("550403")  # OID 2.5.4.3


class IdentityError(ValueError):
    """There is no certificate that names this gateway; the text says where and what helps."""


def device_id(*certificates: Path) -> str:
    """Device id from the first of these files that can be read (default: where a gateway has them).

    Only reads the name: whether the certificate is any good is for the other end of a connection to say.
    Raises IdentityError.
    """
    places = certificates or (PUBLISHED, paths.IDENTITY / "device.crt")
    for path in places:
        try:
            data = path.read_bytes()
        except OSError:
            continue
        try:
            return common_name(data)
        except (ValueError, IndexError) as error:
            raise IdentityError(f"{path} is not a certificate with a common name: {error}") from error
    raise IdentityError(f"no certificate at {' or '.join(map(str, places))}: provision the gateway")


def common_name(pem: bytes) -> str:
    """Common name of the subject of a certificate (X.509, RFC 5280; PEM). Raises ValueError, IndexError.

    By hand because `ssl` costs a service 4 MB that it needs for nothing else.
    """
    match = _PEM.search(pem)
    if not match:
        raise ValueError("no PEM certificate in it")
    try:
        der = base64.b64decode(match[1], validate=False)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
    (certificate,) = [content for _, content in _items(der)]
    _, tbs = next(_items(certificate), (0, b""))
    fields = [
        content for tag, content in _items(tbs) if tag != 0xA0
    ]  # [0] is the version, which may be absent
    subject = fields[4]  # behind serial, signature, issuer, validity
    for _, names in _items(subject):
        for _, pair in _items(names):
            (_, kind), (_, value) = _items(pair)
            if kind == _COMMON_NAME:
                return value.decode()
    raise ValueError("its subject has no common name")


def _items(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and contents of each DER element in turn."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[at : at + size], "big")
            at += size
        if at + length > len(der):
            raise ValueError("it is cut")
        yield tag, der[at : at + length]
        at += length
