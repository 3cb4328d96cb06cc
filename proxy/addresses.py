"""Which hosts may be asked, and which addresses lie on the internet. Pure: nothing is looked up here."""

import ipaddress
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

HTTPS = 443

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_TOP = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])"  # never a number, so no spelling of an IP address is a name
_ENTRY = re.compile(rf"(\*\.)?((?:{_LABEL}\.)+{_TOP})(?::(\d{{1,5}}))?")
_SPECIAL = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"))  # older Pythons take them for global
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """name: a host, or what the names of hosts end in if `any_below`."""

    name: str
    port: int
    any_below: bool

    def allows(self, host: str, port: int) -> bool:
        return port == self.port and (host.endswith(f".{self.name}") if self.any_below else host == self.name)


def allowed_host(entry: str) -> AllowedHost:
    """An entry of the list: `name`, `*.name` or `name:port`. Raises ValueError."""
    matched = _ENTRY.fullmatch(entry.lower())
    port = int(matched[3] or HTTPS) if matched else 0
    if matched is None or not 0 < port < 65_536:
        raise ValueError(
            f"{entry!r} must be a host name such as images.example.com, *.example.com or a.example.com:8443"
        )
    return AllowedHost(matched[2], port, any_below=bool(matched[1]))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet, whatever form it is wrapped in."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return _is_public_v4(parsed) if isinstance(parsed, IPv4Address) else _is_public_v6(parsed)


def _is_public_v4(address: IPv4Address) -> bool:
    usual = address.is_global and not address.is_multicast and not address.is_reserved
    return usual and not any(address in network for network in _SPECIAL)


def _is_public_v6(address: IPv6Address) -> bool:
    """6to4, Teredo and NAT64 carry an IPv4 address; whatever else lies outside of global unicast is none of ours."""
    if address in _NAT64:
        return _is_public_v4(IPv4Address(int(address) & 0xFFFF_FFFF))
    if address not in _GLOBAL_UNICAST or not address.is_global or address.teredo is not None:
        return False
    return address.sixtofour is None or _is_public_v4(address.sixtofour)
