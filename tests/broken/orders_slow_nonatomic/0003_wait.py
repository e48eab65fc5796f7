from importlib import import_module

from django.db import migrations

WAIT = import_module("tests.broken.orders_slow.0003_gate").WAIT


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("orders", "0002_ledger_entry")]

    operations = [migrations.RunSQL(WAIT, migrations.RunSQL.noop)]
