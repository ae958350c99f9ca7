"""What is in an image, as a bill of materials: Debian's packages and Python's distributions, in CycloneDX's JSON.

It is read from the image's layers, nothing is run; the same image has the same bill, byte for byte.
https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import datetime
import tarfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import HeaderParser

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from kaito_local.images.oci import Layout

MEDIA_TYPE = "application/vnd.cyclonedx+json"
_DEBIAN = "var/lib/dpkg/status"
_PYTHON = ".dist-info/METADATA"
_WHITEOUT = ".wh."
# The date of everything in our images: a bill has no other.
_DATED = datetime.datetime(1980, 1, 1, tzinfo=datetime.UTC)
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/kaito-python/kaito")


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """A package of ``kind`` deb or pypi; ``licence`` is an SPDX expression, "" where the package names none."""

    kind: str
    name: str
    version: str
    architecture: str = ""
    licence: str = ""


def packages(layout: Layout, digest: str) -> list[Package]:
    """The packages of the image whose manifest has that digest, ordered; what a later layer removes is not among them.

    https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts
    """
    files: dict[str, str] = {}
    for layer in layout.parts(digest)[1:]:
        with tarfile.open(layout.path(layer.digest)) as archive:
            for member in archive:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                path = f"{folder}/{name}"
                if name.startswith(_WHITEOUT):
                    gone = f"{folder}/{name.removeprefix(_WHITEOUT)}"
                    files = {k: text for k, text in files.items() if k != gone and not k.startswith(f"{gone}/")}
                elif member.isreg() and (path == _DEBIAN or path.endswith(_PYTHON)):
                    read = archive.extractfile(member)
                    assert read is not None
                    files[path] = read.read().decode("utf-8", "replace")
    found = {package for path, text in files.items() for package in _read(path, text)}
    return sorted(found)


def bill(name: str, version: str, *, digest: str, packages: Iterable[Package]) -> str:
    """The bill of the image ``name`` as JSON; ``digest`` is that of its manifest."""
    bom = Bom(serial_number=uuid.uuid5(_NAMESPACE, digest))
    bom.metadata.timestamp = _DATED
    place = PackageURL("oci", name=name, version=digest)
    bom.metadata.component = Component(
        name=name, version=version, type=ComponentType.CONTAINER, purl=place, bom_ref=place.to_string()
    )
    for package in packages:
        bom.components.add(_component(package))
    bom.register_dependency(bom.metadata.component, bom.components)
    text: str = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)
    return text


def _component(package: Package) -> Component:
    purl = PackageURL(
        package.kind,
        namespace="debian" if package.kind == "deb" else None,
        name=package.name,
        version=package.version,
        qualifiers={"arch": package.architecture} if package.architecture else None,
    )
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=[LicenseExpression(package.licence)] if package.licence else [],
    )


def _read(path: str, text: str) -> Iterable[Package]:
    if path == _DEBIAN:
        for paragraph in text.split("\n\n"):
            fields = HeaderParser().parsestr(paragraph)
            if fields.get("Status", "").endswith(" installed"):
                yield Package("deb", fields["Package"], fields["Version"], fields.get("Architecture", ""))
    else:
        fields = HeaderParser().parsestr(text)
        # https://peps.python.org/pep-0503/#normalized-names
        name = fields["Name"].lower().replace("_", "-").replace(".", "-")
        yield Package("pypi", name, fields["Version"], licence=fields.get("License-Expression") or "")
