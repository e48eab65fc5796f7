import json
import logging
import logging.config
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import psycopg2
import pytest
from django.conf import settings as configured
from django.db import IntegrityError, connection
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from migrations_api import log_context
from migrations_api.models import AppliedSet
from service.logs import ContextFilter, HumanFormatter, JsonFormatter, StderrHandler
from service.middleware import RequestIdMiddleware

PASSWORD = "p@ss/w0rd#%"
logger = logging.getLogger("tests.logs")


@pytest.fixture
def written() -> Iterator[Callable[[], list[str]]]:
    """What has been logged, as JSON and as a person reads it."""
    streams = []
    for formatter in (JsonFormatter(), HumanFormatter()):
        handler: logging.StreamHandler[StringIO] = logging.StreamHandler(StringIO())
        handler.setFormatter(formatter)
        handler.addFilter(ContextFilter())
        logger.addHandler(handler)
        streams.append(handler)
    yield lambda: [handler.stream.getvalue() for handler in streams]
    logger.handlers.clear()


def answer(request: HttpRequest) -> HttpResponse:
    logger.warning("answering")
    return HttpResponse()


def test_json__one_object_a_line_with_the_ids(written: Callable[[], list[str]]) -> None:
    with log_context.about_run(7, "acme"):
        logger.warning("two\nlines of %s", "text", extra={"status": 200, "unheard_of": "x"})
    [line] = written()[0].splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "warning",
        "logger": "tests.logs",
        "message": "two lines of text",
        "run_id": 7,
        "tenant_id": "acme",
        "status": 200,
    }


def test_context__is_over_with_the_run(written: Callable[[], list[str]]) -> None:
    with log_context.about_run(7, "acme"):
        pass
    logger.warning("after")
    assert "run_id" not in written()[0]
    assert written()[1].endswith(" warning: after\n")


def test_context__a_record_may_bring_its_own(written: Callable[[], list[str]]) -> None:
    logger.warning("ended", extra={"run_id": 3, "tenant_id": "globex"})
    assert (json.loads(written()[0])["run_id"], "tenant_id=globex" in written()[1]) == (3, True)


@pytest.mark.parametrize("place", ["message", "argument", "extra", "error", "cause"])
def test_secret__is_in_no_line(written: Callable[[], list[str]], settings: Any, place: str) -> None:
    settings.TENANT_DATABASES = {"shop": {**settings.TENANT_DATABASES["shop"], "PASSWORD": PASSWORD}}
    if place == "message":
        logger.error(f"password {PASSWORD}")
    elif place == "argument":
        logger.error("password %s", PASSWORD)
    elif place == "extra":
        logger.error("password", extra={"path": f"/{PASSWORD}", "tenant_id": PASSWORD})
    else:
        try:
            raise_with(PASSWORD, nested=place == "cause")
        except ValueError:
            logger.exception("it failed")
    for text in written():
        assert text
        assert PASSWORD not in text
        assert "w0rd" not in text


def raise_with(text: str, *, nested: bool) -> None:
    try:
        raise ValueError(f"cannot use {text}")
    except ValueError as error:
        if nested:
            raise ValueError("it was refused") from error
        raise


@pytest.mark.django_db
def test_row__of_a_constraint_error_is_in_no_line(written: Callable[[], list[str]]) -> None:
    """PostgreSQL's DETAIL quotes the row."""
    AppliedSet.objects.create(fingerprint="ann@example.org", migrations=[])
    try:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO migrations_api_appliedset VALUES ('ann@example.org', '[]')")
    except IntegrityError:
        logger.exception("it failed")
    for text in written():
        assert "UniqueViolation" in text
        assert "ann@example.org" not in text
        assert "test_logs.py" in text


def test_wrong_password__is_in_no_line(written: Callable[[], list[str]], settings: Any) -> None:
    settings.TENANT_DATABASES = {"shop": {**settings.TENANT_DATABASES["shop"], "PASSWORD": PASSWORD}}
    try:
        psycopg2.connect(f"postgresql://ann:{PASSWORD}@127.0.0.1:1/x")
    except psycopg2.Error:
        logger.exception("it failed")
    for text in written():
        assert "w0rd" not in text


def test_config__is_one_handler_that_follows_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and tests replace sys.stderr."""
    handler = StderrHandler()
    handler.setFormatter(HumanFormatter())
    handler.addFilter(ContextFilter())
    for _ in range(2):
        monkeypatch.setattr(sys, "stderr", StringIO())
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "hello", None, None))
        assert isinstance(sys.stderr, StringIO)
        assert "hello" in sys.stderr.getvalue()
    names = {name: logging.getLogger(name).handlers for name in ("django", "django.server", "django.request")}
    assert not any(names.values())
    assert configured.LOGGING["root"]["handlers"] == ["stderr"]


@pytest.mark.parametrize("given", ["abc", "4bf92f35-77b3.4da6_x", "a" * 64])
def test_request_id__well_formed_is_kept(given: str, written: Callable[[], list[str]]) -> None:
    request = RequestFactory().get("/", headers={"X-Request-ID": given})
    response = RequestIdMiddleware(answer)(request)
    assert response["X-Request-ID"] == request.request_id == given  # type: ignore[attr-defined]
    assert json.loads(written()[0])["request_id"] == given
    assert log_context.request_id.get() == ""


@pytest.mark.parametrize("given", ["", "a b", "a\nb", "ä", "-x", "a" * 65, '"', "../x"])
def test_request_id__otherwise_is_made(given: str) -> None:
    request = RequestFactory().get("/", HTTP_X_REQUEST_ID=given)
    response = RequestIdMiddleware(answer)(request)
    assert response["X-Request-ID"] == request.request_id != given  # type: ignore[attr-defined]
    assert len(response["X-Request-ID"]) == 32
