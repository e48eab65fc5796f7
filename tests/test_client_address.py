from typing import Any

import pytest
from django.test import RequestFactory

from migrations_api.rest.client_address import client_address


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, None, "10.0.0.1"),
        (0, "1.1.1.1", "10.0.0.1"),
        (1, None, "10.0.0.1"),
        (1, "1.1.1.1", "1.1.1.1"),
        (1, "9.9.9.9, 1.1.1.1", "1.1.1.1"),
        (2, "9.9.9.9, 1.1.1.1, 2.2.2.2", "1.1.1.1"),
        (2, "9.9.9.9", "10.0.0.1"),
        (1, "2001:db8::1", "2001:db8::1"),
        (1, "fe80::1%eth0", "fe80::1"),
        (1, "unknown", "10.0.0.1"),
        (1, "1.1.1.1:80", "10.0.0.1"),
        (1, "1.1.1.1\x00", "10.0.0.1"),
        (1, "", "10.0.0.1"),
    ],
)
def test_client_address__behind_proxies(settings: Any, proxies: int, forwarded: str | None, address: str) -> None:
    settings.TRUSTED_PROXIES = proxies
    headers = {} if forwarded is None else {"HTTP_X_FORWARDED_FOR": forwarded}

    assert client_address(RequestFactory(REMOTE_ADDR="10.0.0.1").get("/", **headers)) == address


def test_client_address__of_a_unix_socket() -> None:
    assert client_address(RequestFactory(REMOTE_ADDR="").get("/")) is None
