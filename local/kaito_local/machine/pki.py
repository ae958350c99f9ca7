"""The certificates of a cluster: one authority, server and client certificates signed by it, all as PEM files.

Kubernetes reads a client certificate's common name as the user and its organisations as the groups
(https://kubernetes.io/docs/reference/access-authn-authz/authentication/#x509-client-certificates).
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, as files."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority that lies in a folder as ``ca.crt`` and ``ca.key``."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """The authority's own certificate (PEM)."""
        return self.folder / "ca.crt"

    @property
    def key(self) -> Path:
        """The authority's private key (PEM)."""
        return self.folder / "ca.key"

    @classmethod
    def open(cls, folder: Path, *, name: str = "kaito-local-ca") -> Authority:
        """The authority in ``folder``; made there if there is none."""
        authority = cls(folder)
        if authority.key.exists() and authority.certificate.exists():
            return authority
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            _builder(subject, issuer=subject, public_key=key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        certificate = builder.sign(key, hashes.SHA256())
        write_private(authority.key, _pem_key(key))
        write_private(authority.certificate, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
        return authority

    def server(self, name: str, *, hosts: Iterable[str]) -> KeyPair:
        """A server certificate for host names and IP addresses, in ``<folder>/<name>.crt`` and ``.key``."""
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._issue(name, subject, usage=ExtendedKeyUsageOID.SERVER_AUTH, alternative_names=names)

    def client(self, name: str, *, user: str, groups: Iterable[str] = (), folder: Path | None = None) -> KeyPair:
        """A client certificate that Kubernetes reads as ``user`` in ``groups``; in ``folder`` or the authority's."""
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, user)])
        return self._issue(name, subject, usage=ExtendedKeyUsageOID.CLIENT_AUTH, folder=folder)

    def _issue(
        self,
        name: str,
        subject: x509.Name,
        *,
        usage: x509.ObjectIdentifier,
        alternative_names: list[x509.GeneralName] | None = None,
        folder: Path | None = None,
    ) -> KeyPair:
        signer = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        signing_key = serialization.load_pem_private_key(self.key.read_bytes(), password=None)
        assert isinstance(signing_key, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(subject, issuer=signer.subject, public_key=key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
        )
        if alternative_names:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternative_names), critical=False)
        certificate = builder.sign(signing_key, hashes.SHA256())
        target = folder or self.folder
        target.mkdir(parents=True, exist_ok=True)
        pair = KeyPair(certificate=target / f"{name}.crt", key=target / f"{name}.key")
        write_private(pair.key, _pem_key(key))
        write_private(pair.certificate, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
        return pair


def service_account_key(path: Path) -> Path:
    """An RSA key that signs service account tokens; made at ``path`` if it is not there."""
    if not path.exists():
        write_private(path, _pem_key(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
    return path


def write_kubeconfig(
    path: Path, *, server: str, authority: Authority, client: KeyPair, name: str = "kaito", embed: bool = True
) -> Path:
    """A kubeconfig. ``embed``: it carries its certificates inside, so that it works wherever it is copied; otherwise it
    names their files. Kubernetes' client for Python writes what is inside into temporary files, of which those of a
    process that is killed stay: what runs beside the files gets their names.
    """

    def credential(field: str, file: Path) -> dict[str, str]:
        if not embed:
            return {field: str(file.absolute())}
        return {f"{field}-data": base64.b64encode(file.read_bytes()).decode()}

    cluster = {"server": server, **credential("certificate-authority", authority.certificate)}
    user = credential("client-certificate", client.certificate) | credential("client-key", client.key)
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    # JSON is YAML: no second serializer for one file.
    write_private(path, json.dumps(config, indent=1).encode())
    return path


def write_private(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Writes ``data`` in one step: a reader sees the old file or the whole new one, never a wider mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    partial.rename(path)


def _builder(
    subject: x509.Name, *, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem_key(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
