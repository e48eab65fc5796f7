import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest
from django.db import connection, connections
from django.db.utils import OperationalError

from tenants.binding import bound_tenant, cancel_statement, control_plane, open_connection, tenant_as_default
from tenants.models import Tenant
from tenants.sessions import tenant_session
from tests import catalog


def where() -> tuple[str, str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_database(), current_schema()")
        return tuple(cursor.fetchone())


def where_another_thread_is() -> tuple[str, str]:
    found = []

    def look() -> None:
        found.append(where())
        connections["default"].close()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


@contextmanager
def bound(tenant: Tenant) -> Iterator[Any]:
    with tenant_session(tenant, application_name="test") as session, tenant_as_default(tenant, session):
        yield session


@pytest.fixture
def home(tenant: Tenant, settings: Any) -> tuple[str, str]:
    return tenant.database_name or settings.SHOP, tenant.schema_name


def test_default__is_the_tenant_while_it_is_bound(tenant: Tenant, home: tuple[str, str]) -> None:
    before, plane_connection = where(), connections["default"]
    with bound(tenant) as session:
        assert bound_tenant() == tenant
        assert connections["default"] is session
        assert where() == home
    assert bound_tenant() is None
    assert connections["default"] is plane_connection
    assert where() == before != home


def test_default__is_the_tenant_in_other_threads_too(tenant: Tenant, home: tuple[str, str]) -> None:
    before = where()
    with bound(tenant):
        assert where_another_thread_is() == home
    assert where_another_thread_is() == before


def test_default__is_the_control_plane_again_after_an_error(tenant: Tenant) -> None:
    before, settings_before = where(), connections.settings["default"]
    with pytest.raises(ZeroDivisionError), bound(tenant):
        _ = 1 / 0
    assert where() == before
    assert connections.settings["default"] is settings_before
    assert bound_tenant() is None


def test_default__a_write_through_it_reaches_the_tenant(tenant: Tenant) -> None:
    with bound(tenant), connection.cursor() as cursor:
        cursor.execute("CREATE TABLE mine ()")
    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == {"mine"}
    assert "mine" not in connection.introspection.table_names()


def test_control_plane__within_a_tenant(tenant: Tenant, home: tuple[str, str]) -> None:
    before = where()
    with bound(tenant):
        with control_plane():
            assert bound_tenant() is None
            assert where() == where_another_thread_is() == before
            assert Tenant.objects.get() == tenant
            with control_plane():
                assert where() == before
            assert where() == before
        assert where() == home
        assert bound_tenant() == tenant


def test_control_plane__error_within_leads_back_to_the_tenant(tenant: Tenant, home: tuple[str, str]) -> None:
    with bound(tenant):
        with suppress(ZeroDivisionError), control_plane():
            _ = 1 / 0
        assert where() == home


def test_control_plane__without_a_tenant_is_what_it_was(plane: None) -> None:
    before = where()
    with control_plane():
        assert where() == before
        assert bound_tenant() is None


def test_control_plane__has_a_transaction_of_its_own(tenant: Tenant) -> None:
    """What is recorded while a tenant's transaction is open stays when that is rolled back, and no lock is shared."""
    with bound(tenant) as session, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("CREATE TABLE mine ()")
        with control_plane():
            Tenant.objects.update(name="Recorded")
        cursor.execute("ROLLBACK")
        assert session.connection.info.transaction_status == 0
    assert Tenant.objects.get().name == "Recorded"
    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == set()


def test_open_connection__belongs_to_no_handler_and_copies_the_settings(plane: None) -> None:
    given = {**connections["default"].settings_dict, "OPTIONS": {**connections["default"].settings_dict["OPTIONS"]}}
    with closing(open_connection(given)) as opened:
        assert opened.connection is None
        opened.settings_dict["OPTIONS"]["sslmode"] = "changed"
        assert opened not in connections.all()
    assert "sslmode" not in given["OPTIONS"]


def test_cancel_statement__ends_the_tenants_statement_from_another_thread(tenant: Tenant) -> None:
    with bound(tenant) as session:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            waiting = "SELECT pid FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
            asked = (catalog.tenant_dsn(tenant), waiting, [cursor.fetchone()[0]])
            thread = threading.Thread(target=lambda: when(lambda: bool(catalog.query(*asked)), cancel_statement))
            thread.start()
            with pytest.raises(OperationalError, match="canceling statement due to user request"):
                cursor.execute("SELECT pg_sleep(60)")
            thread.join()
        assert session.is_usable()


def when(condition: Callable[[], bool], action: Callable[[], None]) -> None:
    while not condition():
        pass
    action()


def test_cancel_statement__without_a_tenant_or_a_session_is_nothing(tenant: Tenant) -> None:
    cancel_statement()
    with bound(tenant) as session:
        session.close()
        cancel_statement()
    assert where()
