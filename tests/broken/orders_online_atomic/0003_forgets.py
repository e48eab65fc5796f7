from django.db import migrations

from migrations_api.schema import Schema


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry")]

    operations = [*Schema.table("Order", lambda table: table.index("placed_at"))]
