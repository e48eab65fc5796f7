"""A step without a transaction that has an operation of every kind, each of which leaves something to be seen."""

import os
import signal
from typing import Any

from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db import migrations, models
from django.db.migrations.operations.base import Operation

ENTRIES = ("data 1", "data 2")


def write(apps: Any, schema_editor: Any) -> None:
    for name in ENTRIES:
        apps.get_model("orders", "LedgerEntry").objects.create(migration=name)
        if _is_to_be_killed(schema_editor):
            os.kill(os.getpid(), signal.SIGKILL)


def _is_to_be_killed(schema_editor: Any) -> bool:
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('kill_the_worker') IS NOT NULL")
        return bool(cursor.fetchone()[0])


def unwrite(apps: Any, schema_editor: Any) -> None:
    for name in reversed(ENTRIES):
        apps.get_model("orders", "LedgerEntry").objects.filter(migration=name).delete()


def whole(operation: Operation) -> Operation:
    operation.atomic = True
    return operation


def added(name: str, field: str) -> list[Any]:
    return ["order", models.Index(fields=[field], name=name)]


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("orders", "0001_initial")]

    operations = [
        migrations.CreateModel(
            "Parcel",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("order", models.ForeignKey("orders.Order", on_delete=models.CASCADE)),
            ],
        ),
        migrations.AddField("order", "channel", models.CharField(max_length=10, default="web")),
        migrations.RunPython(write, unwrite),
        migrations.RunSQL(
            ["CREATE TABLE orders_box (id int)", "CREATE TABLE orders_lid (id int)"],
            ["DROP TABLE orders_lid", "DROP TABLE orders_box"],
        ),
        AddIndexConcurrently(*added("orders_new_idx", "channel")),
        RemoveIndexConcurrently("order", "orders_old_idx"),
        migrations.SeparateDatabaseAndState(
            [AddIndexConcurrently(*added("orders_state_idx", "reference"))],
            [migrations.AddIndex(*added("orders_state_idx", "reference"))],
        ),
        whole(
            migrations.RunSQL(
                ["INSERT INTO ledger (migration) VALUES ('whole')", "CREATE TABLE orders_tray (id int)"],
                ["DELETE FROM ledger WHERE migration = 'whole'", "DROP TABLE orders_tray"],
            )
        ),
        migrations.RunSQL(
            "CREATE UNIQUE INDEX CONCURRENTLY orders_reference_key ON orders_order (reference)",
            "DROP INDEX CONCURRENTLY orders_reference_key",
        ),
        migrations.RemoveField("slip", "note"),
    ]
