"""An address is taken before anything costly begins, and what is wrong with it is said in a line."""

import errno
import socket
import sys

import pytest

from gateway.listener import ListenError, bound, listen


def test_a_free_port_is_bound_and_let_go() -> None:
    with bound("127.0.0.1", 0) as [bound_socket]:
        address = bound_socket.getsockname()
        listen([bound_socket])
        socket.create_connection(address).close()

    with bound(*address), pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is not an address of the machine")
def test_all_addresses_of_a_name_are_bound_to_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (f"127.0.0.{last}", 0)) for last in (1, 2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)

    with bound("some-name", 0) as [first, second]:
        assert first.getsockname()[1] == second.getsockname()[1] != 0


def test_a_port_in_use_is_an_error_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ListenError, match=f"^cannot listen on 127.0.0.1 port {port}: another program has it; .*--port$"
        ):
            bound("127.0.0.1", port).__enter__()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the second bind fails already")
def test_of_two_that_have_bound_a_port_the_slower_gets_an_error() -> None:
    with bound("127.0.0.1", 0) as first:
        port = first[0].getsockname()[1]
        with bound("127.0.0.1", port) as second:
            listen(first)
            with pytest.raises(ListenError, match=f"port {port}: another program has it"):
                listen(second)


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(ListenError, match="192.0.2.1 port 0: this machine has no such address; .*--host"):
        bound("192.0.2.1", 0).__enter__()


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (socket.gaierror(-2, "Name or service not known"), "no such host; .*--host"),
        (PermissionError(errno.EACCES, "Permission denied"), "a port above 1023"),
        (OSError(errno.ENOBUFS, "No buffer space"), "No buffer space; choose another address"),
    ],
)
def test_every_reason_comes_with_a_way_out(error: OSError, way_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)

    with pytest.raises(ListenError, match=way_out):
        bound("host", 80).__enter__()
