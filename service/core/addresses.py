"""Addresses to listen on, as people write them. The health check needs it, so it imports little."""

import ipaddress

LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def plain_host(host: str) -> str:
    """The host without the brackets that an IPv6 address has in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a server that listens on `host`."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(plain_host(host))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return address.is_loopback or (mapped is not None and mapped.is_loopback)


def own_address(host: str) -> str:
    """Where this machine reaches a server that listens on `host`, which may stand for all addresses."""
    return LOOPBACK_OF.get(plain_host(host), plain_host(host))


def url_of(host: str, port: int) -> str:
    """The URL of a server, with brackets around an IPv6 address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
