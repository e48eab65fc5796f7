import os, signal, threading
from multiprocessing import active_children
import psycopg2, pytest
from psycopg2 import sql
from django.db import connections
from migrations_api.dispatch.parallel import ParallelDispatcher
from migrations_api.exceptions import RunActive
from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.fleet import observe, migration_records
from migrations_api.orchestrator import requests
from migrations_api.orchestrator.requests import Request, request_rollout, request_run
from migrations_api.orchestrator.work import work
from migrations_api.plan import Target
from tenants import provisioning
from tenants.backends.schema import SchemaBackend
from tenants.models import Tenant, Isolation
from tests import catalog
from tests.command_line import manage
from tests.test_abandoned import abandon, settle, USERS


def migrate(tenant, app=None, name=None):
    run = request_run(tenant, Request(target=Target(app_label=app, migration_name=name)))
    work(run.pk, emit=lambda e: None, should_stop=lambda: False)


def test_create_race(plane, monkeypatch, make_tenant):
    """the second caller comes between the first one's row and its schema"""
    real = SchemaBackend.provision
    results = {}
    def create(who):
        try:
            results[who] = provisioning.create_tenant(tenant_id="acme", name="x", isolation="schema", database="shop")
        except BaseException as e:
            results[who] = e
        finally:
            if who == "second": connections.close_all()
    first = []
    def provision(self, tenant):
        if not first:
            first.append(1)
            t = threading.Thread(target=create, args=("second",)); t.start(); t.join(3)
            results["t"] = t
        return real(self, tenant)
    monkeypatch.setattr(SchemaBackend, "provision", provision)
    create("first")
    results.pop("t").join()
    rows = Tenant.objects.count(); there = "public_acme" in catalog.schemas(catalog.dsn(__import__("django.conf").conf.settings.TENANT_DATABASES["shop"]))
    catalog.query(catalog.dsn(__import__("django.conf").conf.settings.TENANT_DATABASES["shop"]), "DROP SCHEMA IF EXISTS public_acme CASCADE")
    print({k: repr(v) for k, v in results.items()}, rows, there)
    assert rows == there == 1


def test_observe_one_bad(make_tenant):
    good, bad = make_tenant("good"), make_tenant("bad")
    for t in (good, bad): migrate(t, "users", "0001")
    catalog.query(catalog.tenant_dsn(bad), "ALTER TABLE public_bad.django_migrations RENAME COLUMN applied TO other")
    seen = observe([good, bad])
    assert seen["good"].applied is not None, seen["good"].error


def test_observe_locked(make_tenant):
    good, bad = make_tenant("good"), make_tenant("bad")
    for t in (good, bad): migrate(t, "users", "0001")
    c = psycopg2.connect(**catalog.tenant_dsn(bad))
    c.cursor().execute("LOCK TABLE public_bad.django_migrations IN ACCESS EXCLUSIVE MODE")
    got = {}
    th = threading.Thread(target=lambda: got.update(observe([good, bad]))); th.start(); th.join(15)
    hung = th.is_alive()
    c.close(); th.join()
    assert not hung


def test_rollout_lease(make_tenant):
    make_tenant()
    rollout, _ = request_rollout(Tenant.objects.all(), Request())
    assert rollout.lease_expires_at is not None


def test_rollout_lost(make_tenant, monkeypatch):
    t = make_tenant()
    run = request_run(t, Request())
    real = MigrationRun.objects.bulk_create
    from django.db.models import QuerySet
    orig = QuerySet.bulk_create
    def bc(self, objs, **kw):
        r = orig(self, objs, **kw)
        if self.model is MigrationRun and MigrationRun.objects.active().filter(pk=run.pk).exists():
            def end():
                MigrationRun.objects.filter(pk=run.pk).update(state="succeeded"); connections.close_all()
            th = threading.Thread(target=end); th.start(); th.join()
        return r
    monkeypatch.setattr(QuerySet, "bulk_create", bc)
    rollout, busy = request_rollout(Tenant.objects.all(), Request())
    assert rollout.runs.count() + len(busy) == 1


def test_plan_target_shared(make_tenant):
    make_tenant("acme"); make_tenant("zulu", Isolation.SHARED)
    r = manage("migratealltenants", "users", "--plan")
    print(r)
    assert r.code == 0


def test_plan_unprovisioned(make_tenant):
    make_tenant("acme"); make_tenant("later", provision=False)
    print(manage("migratealltenants", "--plan", "users", "0001")); print(manage("migratealltenants").code, manage("migratealltenants", "--check"))
    assert 0


def test_dead_idle_worker(plane):
    d = ParallelDispatcher(lambda run_id, emit, should_stop: None, max_concurrency=1, emit=print, should_stop=lambda: False)
    d.submit(1)
    while d.held: d.wait(1)
    w = d._workers[0].process
    os.kill(w.pid, signal.SIGKILL); w.join()
    d.submit(2)
    assert d.held
    d.close()


def test_settle_untranslated(make_tenant, settings):
    t = make_tenant()
    migrate(t, "users", "0001")
    run, _ = abandon(t, USERS, in_step=False)
    catalog.query(catalog.tenant_dsn(t), "ALTER TABLE public_acme.django_migrations RENAME COLUMN name TO other")
    settle(run)


def test_lost_commit_then_retry(make_tenant, monkeypatch):
    t = make_tenant()
    from migrations_api.executor.migrator import TenantMigrator
    from django.db.backends.postgresql.base import DatabaseWrapper
    real = DatabaseWrapper._commit
    cut = []
    def commit(self):
        r = real(self)
        if not cut and self.connection is not None and catalog.tables(catalog.tenant_dsn(t), t.schema_name) >= {"users_user"}:
            cut.append(1)
            self.connection.close()
            raise __import__("django.db").db.OperationalError("lost") from psycopg2.OperationalError("server closed the connection unexpectedly")
        return r
    monkeypatch.setattr(DatabaseWrapper, "_commit", commit)
    run = request_run(t, Request(target=Target(app_label="users")))
    work(run.pk, emit=print, should_stop=lambda: False)
    run.refresh_from_db()
    print(run.state, run.attempt, run.message, [(str(s), s.state) for s in run.steps.all()])
    assert cut and [s.name for s in run.steps.all()][0] == "0001_initial"


@pytest.mark.parametrize("args", [["--plan-digest=" + '"%s"' % ("a" * 64)], ["--prune", "users", "--plan"], ["--prune", "--plan"], ["--fake", "--fake-initial", "--plan"]])
def test_migratetenant(make_tenant, args):
    make_tenant()
    print(manage("migratetenant", "--tenant-id=acme", *args)); assert 0


@pytest.mark.parametrize("args", [["--label=k=\udcff"], ["--label=" + "k" * 100 + "=1"], ["--label=k=" + "v" * 100000], ["--name=a\udcff"], ["--label=a\nb=1"]])
def test_createtenant(plane, args):
    r = manage("createtenant", "--tenant-id=acme", "--isolation=schema", "--database=shop", "--register-only", "--no-input", *args)
    print(repr(r)[:400]); assert 0


def test_records(make_tenant, broken):
    t = make_tenant()
    migrate(t, "users")
    catalog.query(catalog.tenant_dsn(t), "DELETE FROM public_acme.django_migrations WHERE name = '0002_email_unique'")
    print(manage("showtenantmigrations", "--tenant-id=acme")); print(manage("migratetenant", "--tenant-id=acme"));
    broken(orders="orders_conflict")
    print(manage("showtenantmigrations", "--tenant-id=acme"));  assert 0


def test_auth_retry(make_tenant, settings):
    pass
