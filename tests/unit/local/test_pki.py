from __future__ import annotations

import json
import ssl
import stat
import tempfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from kubernetes.client import Configuration
from kubernetes.config import load_kube_config

from kaito_local.machine.pki import Authority, service_account_key, write_kubeconfig


def test_an_authority_is_made_once_and_found_again(tmp_path: Path) -> None:
    first = Authority.open(tmp_path).certificate.read_bytes()
    assert Authority.open(tmp_path).certificate.read_bytes() == first


def test_private_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    pair = authority.client("admin", user="admin", groups=["system:masters"])
    config = write_kubeconfig(tmp_path / "kubeconfig", server="https://127.0.0.1:1", authority=authority, client=pair)
    for file in (authority.key, pair.key, config, service_account_key(tmp_path / "sa.key")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_client_certificate_carries_user_and_groups(tmp_path: Path) -> None:
    pair = Authority.open(tmp_path).client("kubelet", user="system:node:n1", groups=["system:nodes"])
    subject = x509.load_pem_x509_certificate(pair.certificate.read_bytes()).subject
    assert [a.value for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["system:node:n1"]
    assert [a.value for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == ["system:nodes"]


def test_a_server_certificate_names_hosts_and_addresses_and_openssl_takes_it(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    pair = authority.server("api", hosts=["127.0.0.1", "kubernetes.default.svc"])
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["kubernetes.default.svc"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate.read_bytes()))
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(pair.certificate, pair.key)


def test_a_kubeconfig_works_wherever_it_is_copied(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    client = authority.client("a", user="a")
    file = write_kubeconfig(tmp_path / "c", server="https://127.0.0.1:1", authority=authority, client=client)
    config = json.loads(file.read_text())
    assert set(config["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}
    assert config["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1"


def test_a_kubeconfig_that_names_files_makes_the_client_write_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.open(tmp_path / "pki")
    client = authority.client("a", user="a")
    file = write_kubeconfig(
        tmp_path / "c", server="https://127.0.0.1:1", authority=authority, client=client, embed=False
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    settings = Configuration()
    load_kube_config(config_file=str(file), client_configuration=settings, persist_config=False)
    assert (settings.ssl_ca_cert, settings.cert_file) == (str(authority.certificate), str(client.certificate))
    assert list((tmp_path / "temporary").iterdir()) == []
