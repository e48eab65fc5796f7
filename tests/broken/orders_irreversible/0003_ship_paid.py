from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def ship_paid(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    orders = apps.get_model("orders", "Order").objects.using(schema_editor.connection.alias)
    orders.filter(status="paid").update(status="shipped")


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry")]

    operations = [migrations.RunPython(ship_paid)]
