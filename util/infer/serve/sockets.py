"""Sockets that a service listens on, and the addresses of hosts."""

from __future__ import annotations

import ipaddress
import socket


def open_socket(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 takes any free one. Raises ValueError if that fails."""
    if not 0 <= port < 2**16:
        raise ValueError(f"--port {port}: expected 0 to {2**16 - 1}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); "
            "choose another port, or stop the program that uses it"
        ) from error


def url_of(listening: socket.socket) -> str:
    """Return the URL at which a browser on this machine reaches a listening socket."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def is_address(name: str) -> bool:
    """Return True for an IP address, False for a host name."""
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach the host."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)
