from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from tests.broken.conditions import is_globex
from tests.broken.orders_steady import NAP


def fail_in_globex(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    if is_globex(schema_editor):
        raise ValueError("an order has no channel")


class Migration(migrations.Migration):
    dependencies = [("orders", "0003_parcel")]

    operations = [
        migrations.AddField("order", "channel", models.CharField(max_length=20, default="web")),
        migrations.RunSQL(NAP, migrations.RunSQL.noop),
        migrations.RunPython(fail_in_globex, migrations.RunPython.noop),
        migrations.AddField("order", "campaign", models.TextField(default="")),
    ]
