from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry")]

    operations = [
        migrations.RunSQL("SET search_path TO public", migrations.RunSQL.noop),
        migrations.CreateModel("Stray", [("id", models.BigAutoField(primary_key=True))]),
    ]
