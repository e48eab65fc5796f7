from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry"), ("users", "0099_missing")]

    operations = [migrations.AddField("order", "note", models.TextField(default=""))]
