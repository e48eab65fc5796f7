"""Random migrations: what is sent as one script leaves what Django's own way leaves."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from django.db import migrations, models
from django.db.migrations.operations.base import Operation
from django.db.models import F, Q

from migrations_api.executor import repertoire
from migrations_api.executor.rehearsal import Rehearsal
from migrations_api.orchestrator import sources
from migrations_api.plan import MigrationSource
from tenants.models import Tenant
from tests import catalog, soak
from tests.small_app import APP, MakeTenant, migrate
from tests.test_invariant import snapshot

HISTORIES = int(soak.sized(4, 100))
MIGRATIONS, MOST = 6, 4


def a_field(random_: random.Random) -> Any:
    index = {"db_index": random_.random() < 0.3}
    kinds: list[Callable[[], Any]] = [
        lambda: models.IntegerField(null=True, **index),
        lambda: models.IntegerField(default=random_.randint(0, 9), **index),
        lambda: models.IntegerField(default=lambda: 5),
        lambda: models.CharField(max_length=random_.randint(5, 300), default="it's 100%", **index),
        lambda: models.CharField(max_length=20, null=True, unique=True),
        lambda: models.TextField(blank=True, default="", **index),
        lambda: models.DecimalField(max_digits=12, decimal_places=2, null=True),
        lambda: models.BooleanField(db_default=True),
        lambda: models.JSONField(default=dict),
        lambda: models.DateField(auto_now_add=True),
        lambda: models.UUIDField(null=True, **index),
        lambda: models.ForeignKey("orders.Box", models.CASCADE, null=True, related_name="+"),
        lambda: models.ManyToManyField("orders.Box", related_name="+"),
        lambda: models.GeneratedField(
            expression=F("id") * 2, output_field=models.BigIntegerField(), db_persist=True, **index
        ),
    ]
    return random_.choice(kinds)()


class History:
    """Writes random migrations that are possible one after the other, over one model and what is made beside it."""

    def __init__(self, random_: random.Random) -> None:
        self.random = random_
        self.number = 0
        self.fields: dict[str, Any] = {}
        self.indexes: list[str] = []
        self.constraints: list[str] = []

    def name(self, kind: str) -> str:
        self.number += 1
        return f"{kind}_{self.number}"

    def operation(self) -> Operation:
        plain = [name for name, field in self.fields.items() if type(field) is models.IntegerField]
        kinds = [self.add_field, self.add_field, self.add_field, self.make_model]
        kinds += [self.remove_field, self.rename_field] if self.free else []
        kinds += [self.alter_field, self.add_index, self.add_check, self.add_unique] if plain else []
        kinds += [self.remove_index] if self.indexes else []
        kinds += [self.remove_constraint] if self.constraints else []
        self.plain = plain
        return self.random.choice(kinds)()

    def add_field(self) -> Operation:
        name, field = self.name("field"), a_field(self.random)
        self.fields[name] = field
        return migrations.AddField("Order", name, field)

    def alter_field(self) -> Operation:
        name = self.random.choice(self.plain)
        altered = models.IntegerField(default=1, db_index=self.random.random() < 0.5, db_comment=self.name("what"))
        self.fields[name] = altered
        return migrations.AlterField("Order", name, altered)

    @property
    def free(self) -> list[str]:
        """The fields that no index or constraint names."""
        used = self.indexes + self.constraints
        return [name for name in self.fields if not any(f"_{name}_" in each for each in used)]

    def remove_field(self) -> Operation:
        name = self.random.choice(self.free)
        del self.fields[name]
        return migrations.RemoveField("Order", name)

    def rename_field(self) -> Operation:
        old, new = self.random.choice(self.free), self.name("field")
        self.fields[new] = self.fields.pop(old)
        return migrations.RenameField("Order", old, new)

    def add_index(self) -> Operation:
        field = self.random.choice(self.plain)
        self.indexes.append(self.name(f"i_{field}_n"))
        return migrations.AddIndex("Order", models.Index(fields=[field, "id"], name=self.indexes[-1]))

    def remove_index(self) -> Operation:
        return migrations.RemoveIndex("Order", self.indexes.pop())

    def add_check(self) -> Operation:
        field = self.random.choice(self.plain)
        self.constraints.append(self.name(f"c_{field}_n"))
        check = models.CheckConstraint(condition=Q(**{f"{field}__gte": -1}), name=self.constraints[-1])
        return migrations.AddConstraint("Order", check)

    def add_unique(self) -> Operation:
        field = self.random.choice(self.plain)
        self.constraints.append(self.name(f"u_{field}_n"))
        unique = models.UniqueConstraint(fields=[field, "id"], name=self.constraints[-1])
        return migrations.AddConstraint("Order", unique)

    def remove_constraint(self) -> Operation:
        return migrations.RemoveConstraint("Order", self.constraints.pop())

    def make_model(self) -> Operation:
        key = ("id", models.BigAutoField(primary_key=True))
        order = ("order", models.ForeignKey("orders.Order", models.CASCADE, related_name="+"))
        return migrations.CreateModel(self.name("Model"), [key, order, ("size", models.IntegerField())])


FIRST = (
    migrations.CreateModel("Box", [("id", models.BigAutoField(primary_key=True))]),
    migrations.CreateModel("Order", [("id", models.BigAutoField(primary_key=True))]),
)


def history(number: int) -> MigrationSource:
    random_ = random.Random(number)  # noqa: S311 - the same histories each time
    writer = History(random_)
    later = [tuple(writer.operation() for _ in range(random_.randint(1, MOST))) for _ in range(MIGRATIONS)]
    written = {}
    for place, operations in enumerate([FIRST, *later]):
        name = f"m{place}"
        values = {"operations": operations, "dependencies": [("orders", f"m{place - 1}")] if place else []}
        written["orders", name] = type(name, (migrations.Migration,), {"initial": not place, **values})(name, "orders")
    nothing: frozenset[Any] = frozenset()
    return MigrationSource(
        labels=frozenset({"orders"}), migrations=written, unmigrated_apps=nothing, outside_keys=nothing
    )


def migrated(tenant: Tenant) -> dict[str, Any]:
    run = migrate(tenant)
    assert (run.state, run.message) == ("succeeded", "")
    return snapshot(catalog.tenant_dsn(tenant), tenant.schema_name)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("number", range(HISTORIES))
def test_script__leaves_what_django_leaves(
    make_tenant: MakeTenant, monkeypatch: pytest.MonkeyPatch, settings: Any, number: int
) -> None:
    settings.TENANT_APPS = [APP]
    source = history(number)
    monkeypatch.setattr(sources, "_load", lambda *key: source)
    scripts: list[str | None] = []
    script = Rehearsal.script

    def noted(*given: Any) -> str | None:
        scripts.append(script(*given))
        return scripts[-1]

    monkeypatch.setattr(Rehearsal, "script", noted)
    for name in ("first", "second"):
        migrated(make_tenant(name))
    scripts.clear()
    followed = migrated(make_tenant("third"))
    assert any(scripts)
    repertoire.clear()

    assert followed == migrated(make_tenant("alone"))
