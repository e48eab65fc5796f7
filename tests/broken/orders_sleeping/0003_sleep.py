from django.db import migrations, models

from tests.broken.orders_sleeping import SLEEP


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry")]

    operations = [
        migrations.AddField("order", "note", models.TextField(default="")),
        migrations.RunSQL(SLEEP, migrations.RunSQL.noop),
    ]
