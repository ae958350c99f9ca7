"""Where clouds tell a machine its secrets: no Pod of a user has any business there."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

IPV4 = (
    IPv4Network("169.254.0.0/16"),
    # https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
    IPv4Network("168.63.129.16/32"),
    IPv4Network("100.100.100.200/32"),  # Alibaba: alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata
    IPv4Network("192.0.0.192/32"),  # Oracle's classic instances
)
IPV6 = (
    IPv6Network("fe80::/10"),
    IPv6Network("fd00:ec2::/32"),  # AWS: docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
    IPv6Network("fd20:ce::254/128"),  # Google: cloud.google.com/compute/docs/metadata/querying-metadata
)
