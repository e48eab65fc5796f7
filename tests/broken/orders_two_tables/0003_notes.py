from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry")]

    operations = [
        migrations.AddField("order", "note", models.TextField(default="")),
        migrations.AddField("ledgerentry", "note", models.TextField(default="")),
    ]
