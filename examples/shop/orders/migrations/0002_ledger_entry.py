from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

NAME = "orders.0002_ledger_entry"


def append_entry(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    apps.get_model("orders", "LedgerEntry").objects.using(schema_editor.connection.alias).create(migration=NAME)


def remove_newest_entry(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    entries = apps.get_model("orders", "LedgerEntry").objects.using(schema_editor.connection.alias)
    newest = entries.filter(migration=NAME).order_by("-pk").values("pk")[:1]
    entries.filter(pk__in=newest).delete()


class Migration(migrations.Migration):
    dependencies = [("orders", "0001_initial")]

    # No schema change here: a second run would succeed, and leave a second row.
    operations = [migrations.RunPython(append_entry, remove_newest_entry)]
