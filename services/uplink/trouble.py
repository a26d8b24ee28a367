"""Why there is no connection, in words that say what to do. The codes are stable: events and tests use them."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from typing import NamedTuple


class Trouble(NamedTuple):
    code: str
    text: str
    """One line: what is wrong, and the remedy."""


_CLIENT_CERTIFICATE = {
    "CERTIFICATE_EXPIRED": ("certificate-expired", "this gateway's certificate has expired; issue a new one"),
    "CERTIFICATE_REVOKED": ("certificate-revoked", "this gateway's certificate was revoked; issue a new one"),
    "CERTIFICATE_REQUIRED": (
        "certificate-missing",
        "the cloud got no certificate from this gateway; provision it",
    ),
    "UNKNOWN_CA": (
        "certificate-refused",
        "the cloud does not know the CA of this gateway's certificate; provision the gateway for this cloud",
    ),
    "BAD_CERTIFICATE": (
        "certificate-refused",
        "the cloud refuses this gateway's certificate; provision it again",
    ),
    "UNSUPPORTED_CERTIFICATE": (
        "certificate-refused",
        "this gateway's certificate is not one for clients; provision it again",
    ),
    "CERTIFICATE_UNKNOWN": (
        "certificate-refused",
        "the cloud refuses this gateway's certificate; provision it again",
    ),
}


def explain(error: BaseException, host: str, port: int) -> Trouble:  # noqa: PLR0911 - one per kind of trouble
    """Trouble with reaching `host`, from the exception."""
    at = f"{host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _server_certificate(error, host)
    if isinstance(error, ssl.SSLError):
        return _tls(str(error), at)
    if isinstance(error, socket.gaierror):
        return Trouble(
            "dns",
            f"the name {host} can't be resolved ({error.strerror}); check cloud.host and the DNS servers",
        )
    if isinstance(error, TimeoutError):
        return Trouble("timeout", f"{at} does not answer; does the company's firewall let TCP {port} out?")
    if isinstance(error, ConnectionRefusedError):
        return Trouble("closed", f"{at} refuses connections; check cloud.host, or the cloud's broker is down")
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return Trouble("reset", f"{at} or a firewall on the way closed the connection")
    if isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
        return Trouble(
            "no-route", f"there is no way to {at} ({error.strerror}); check cable and address of the WAN"
        )
    return Trouble("error", f"connecting to {at} failed: {error}")


def _server_certificate(error: ssl.SSLCertVerificationError, host: str) -> Trouble:
    match error.verify_code:  # X509_V_ERR_* of OpenSSL, x509_vfy.h
        case 62 | 64:
            return Trouble(
                "server-name",
                f"the server that answers is not {host}: its certificate carries other names; check cloud.host, or "
                "someone is in between",
            )
        case 10:
            return Trouble(
                "server-expired",
                f"the certificate of {host} has expired; its operator must renew it (or this clock is wrong)",
            )
        case 9:
            return Trouble(
                "server-not-yet-valid",
                f"the certificate of {host} is not valid yet; check this gateway's clock",
            )
        case 18 | 19 | 20 | 21 | 2:
            return Trouble(
                "server-unknown-ca",
                f"the certificate of {host} is of a CA that this gateway does not trust; check cloud.host and ca.crt, "
                "or someone is in between",
            )
    return Trouble("server-certificate", f"the certificate of {host} is refused: {error.verify_message}")


def _tls(text: str, at: str) -> Trouble:
    for word, (code, remedy) in _CLIENT_CERTIFICATE.items():
        if word in text.upper().replace(" ", "_"):
            return Trouble(code, f"{at}: {remedy}")
    if re.search(r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL|NO_PROTOCOLS", text):
        return Trouble("tls-version", f"{at} speaks no TLS 1.2 or higher; it must be updated")
    if "EOF" in text:
        return Trouble(
            "tls-closed",
            f"{at} closed the connection during the TLS handshake; it may speak no TLS 1.2 or higher, or a firewall "
            "on the way lets no TLS through",
        )
    if re.search(r"WRONG_VERSION_NUMBER|HTTP_REQUEST|RECORD_LAYER_FAILURE", text):
        return Trouble(
            "no-tls", f"{at} does not speak TLS; check cloud.host, or a proxy on the way intercepts TCP 443"
        )
    return Trouble("tls", f"TLS with {at} failed: {text}")


def lost(log_text: str, reason: str, at: str, *, answered: bool) -> Trouble:
    """Trouble on an open connection: from the client library's last complaint and the reason it gives."""
    if "alert" in log_text.lower():
        return _tls(log_text, at)
    if not answered:
        return Trouble(
            "certificate-refused",
            f"{at} closed the connection without an answer; most likely it refuses this gateway's certificate "
            "(other CA, expired, revoked): provision the gateway for this cloud",
        )
    if "Keep alive" in reason:
        return Trouble("silent", f"{at} does not answer any more: the link is dead somewhere on the way")
    if "timed out" in log_text:
        return Trouble("silent", f"{at} does not acknowledge any more: the link is dead somewhere on the way")
    detail = log_text or reason
    return Trouble("lost", f"the connection to {at} was lost: {detail}")


def mute(at: str) -> Trouble:
    """The connection came about, but nobody answers on it."""
    return Trouble("mute", f"{at} takes the connection and never answers; check cloud.host")


def no_mqtt(at: str, error: Exception) -> Trouble:
    """What came was not MQTT."""
    return Trouble("no-mqtt", f"{at} answers, but not in MQTT ({error!r}); check cloud.host")


def refused(reason: str, at: str) -> Trouble:
    """The broker answered, but not with a yes (MQTT 5 reason code)."""
    if reason in ("Not authorized", "Bad user name or password", "Client identifier not valid", "Banned"):
        return Trouble(
            "not-authorized",
            f"the broker at {at} does not admit this gateway ({reason}); is it registered there?",
        )
    return Trouble("broker", f"the broker at {at} refuses the connection: {reason}")
