"""Which hosts may be asked for images, and which addresses are of the internet."""

import pytest

from proxy.addresses import allowed_host, is_public


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("images.example.com", "images.example.com", 443),
        ("Images.Example.com", "images.example.com", 443),
        ("*.example.com", "a.example.com", 443),
        ("*.example.com", "a.b.example.com", 443),
        ("cdn.example.com:8443", "cdn.example.com", 8443),
    ],
)
def test_a_host_of_the_list_is_allowed(entry: str, host: str, port: int) -> None:
    assert allowed_host(entry).allows(host, port)


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("example.com", "a.example.com", 443),
        ("example.com", "notexample.com", 443),
        ("*.example.com", "example.com", 443),
        ("*.example.com", "notexample.com", 443),
        ("*.example.com", "example.com.evil.net", 443),
        ("example.com", "example.com", 80),
        ("example.com", "example.com", 8443),
        ("example.com", "example.com.", 443),
        ("example.com:8443", "example.com", 443),
    ],
)
def test_any_other_is_not(entry: str, host: str, port: int) -> None:
    assert not allowed_host(entry).allows(host, port)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.*",
        "localhost",
        "127.0.0.1",
        "[::1]",
        "2130706433.1",
        "0x7f.1",
        "https://example.com",
        "example.com/a",
    ]
    + ["example.com:0", "example.com:65536", "a b.com", "*.com.", "user@example.com", ".example.com", "exa*mple.com"],
)
def test_what_is_no_entry_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="must be a host name such as"):
        allowed_host(entry)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "93.184.215.14", "2606:2800:21f:cb07::1", "2002:101:101::1", "64:ff9b::101:101"],
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.8",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:1.1.1.1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "2001:db8::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2002:7f00:1::1",
        "2002:a9fe:a9fe::1",
        "2002:a00:1::1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "100::1",
        "5f00::1",
        "localhost",
        "",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
    ],
)
def test_any_other_address_is_not(address: str) -> None:
    assert not is_public(address)
