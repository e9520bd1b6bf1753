"""The variables that Kubernetes injects, as its documentation gives them, and names that are near them."""

import pytest

from service.core.service_links import is_service_link, service_links, without_service_links

# What the kubelet sets for a Service with a cluster IP and a named port.
OF_A_SERVICE = {
    "GLYPHREC_SERVICE_HOST": "10.0.0.1",
    "GLYPHREC_SERVICE_PORT": "8000",
    "GLYPHREC_SERVICE_PORT_HTTP": "8000",
    "GLYPHREC_PORT": "tcp://10.0.0.1:8000",
    "GLYPHREC_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "GLYPHREC_PORT_8000_TCP_PROTO": "tcp",
    "GLYPHREC_PORT_8000_TCP_PORT": "8000",
    "GLYPHREC_PORT_8000_TCP_ADDR": "10.0.0.1",
}
OF_ANOTHER = {name.replace("GLYPHREC", "GLYPHREC_REDIS"): value for name, value in OF_A_SERVICE.items()}
OF_IPV6 = {
    "GLYPHREC_API_SERVICE_HOST": "fd00::1",
    "GLYPHREC_API_PORT": "tcp://[fd00::1]:8000",
    "GLYPHREC_API_PORT_53_UDP": "udp://[fd00::1]:53",
    "GLYPHREC_API_PORT_53_UDP_ADDR": "fd00::1",
}


@pytest.mark.parametrize(("name", "value"), [*OF_A_SERVICE.items(), *OF_ANOTHER.items(), *OF_IPV6.items()])
def test_what_kubernetes_sets_for_a_service_is_recognized(name, value):
    assert is_service_link(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GLYPHREC_PORT", "8000"),
        ("GLYPHREC_PORT", "tcp"),
        ("GLYPHREC_PORT", ""),
        ("GLYPHREC_HOST", "10.0.0.1"),
        ("GLYPHREC_SERVICE_HOST", "example.org"),
        ("GLYPHREC_PORT_8000", "tcp://10.0.0.1:8000"),
        ("GLYPHREC_REDIS_URL", "tcp://10.0.0.1:8000"),
        ("GLYPHREC_TAKE_OVER_PORT", "true"),
    ],
)
def test_a_setting_and_a_mistake_are_not_taken_for_one(name, value):
    assert not is_service_link(name, value)


def test_only_the_links_are_left_out_and_only_ours_are_named():
    environment = {"REDIS_PORT": "tcp://10.0.0.2:6379", "GLYPHREC_HOST": "0.0.0.0"} | OF_A_SERVICE
    assert service_links(environment, "GLYPHREC_") == sorted(OF_A_SERVICE)
    assert without_service_links(environment) == {"GLYPHREC_HOST": "0.0.0.0"}
