from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def close(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    schema_editor.connection.close()


def append_entry(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    entries = apps.get_model("orders", "LedgerEntry").objects.using(schema_editor.connection.alias)
    entries.create(migration="after close")


class Migration(migrations.Migration):
    # In a transaction the next statement would fail, and nothing would be hidden.
    atomic = False

    dependencies = [("orders", "0002_ledger_entry")]

    operations = [
        migrations.RunPython(close, migrations.RunPython.noop),
        migrations.RunPython(append_entry, migrations.RunPython.noop),
    ]
