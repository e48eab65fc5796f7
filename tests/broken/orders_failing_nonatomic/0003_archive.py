from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from tests.broken.conditions import is_globex


def fail_in_globex(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    if is_globex(schema_editor):
        raise ValueError("an order cannot be archived")


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("orders", "0002_ledger_entry")]

    operations = [
        migrations.CreateModel("Archive", [("id", models.BigAutoField(primary_key=True))]),
        migrations.RunPython(fail_in_globex, migrations.RunPython.noop),
        migrations.CreateModel("ArchiveIndex", [("id", models.BigAutoField(primary_key=True))]),
    ]
