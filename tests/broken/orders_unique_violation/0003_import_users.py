from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from tests.broken.conditions import is_globex


def import_users(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    users = apps.get_model("users", "User").objects.using(schema_editor.connection.alias)
    users.create(email="a@b.c")
    if is_globex(schema_editor):
        users.create(email="a@b.c")


def remove_users(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    users = apps.get_model("users", "User").objects.using(schema_editor.connection.alias)
    users.filter(email="a@b.c").delete()


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry"), ("users", "0005_address")]

    operations = [migrations.RunPython(import_users, remove_users)]
