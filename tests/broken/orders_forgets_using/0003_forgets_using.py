from django.apps.registry import Apps
from django.db import connection, migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from examples.shop.orders.models import LedgerEntry


def by_historical_model(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    apps.get_model("orders", "LedgerEntry").objects.create(migration="historical model")


def by_real_model(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    LedgerEntry.objects.create(migration="real model")


def by_raw_cursor(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO ledger (migration, created_at) VALUES ('raw cursor', now())")


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry")]

    operations = [
        migrations.RunPython(by_historical_model, migrations.RunPython.noop),
        migrations.RunPython(by_real_model, migrations.RunPython.noop),
        migrations.RunPython(by_raw_cursor, migrations.RunPython.noop),
    ]
