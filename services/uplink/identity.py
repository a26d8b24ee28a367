"""The gateway's identity: key, certificate, the CA it trusts. The certificate's CN is the device id."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from firmware import paths
from firmware.identity import IdentityError, device_id
from firmware.wire import topics


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
        device = device_id(certificate)
    except IdentityError as error:
        raise IdentityError(f"{error}; provision the gateway again") from error
    if not topics.is_device(device):
        raise IdentityError(
            f"{certificate} names {device!r}, which is no device id; provision the gateway again"
        )
    return Identity(device, key, certificate, ca)
