from importlib import import_module

from django.db import migrations, models

WAIT = import_module("tests.broken.orders_slow.0003_gate").WAIT


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("orders", "0003_wait")]

    operations = [
        migrations.CreateModel("Parcel", [("id", models.BigAutoField(primary_key=True))]),
        migrations.RunSQL(WAIT, migrations.RunSQL.noop),
    ]
