from django.db import migrations, models

ID = ("id", models.BigAutoField(primary_key=True))


class Migration(migrations.Migration):
    initial = True

    operations = [
        migrations.CreateModel("LedgerEntry", [ID, ("migration", models.TextField())], {"db_table": "ledger"}),
        migrations.CreateModel(
            "Order",
            [ID, ("status", models.CharField(max_length=10)), ("reference", models.IntegerField(null=True))],
            {"indexes": [models.Index(fields=["status"], name="orders_old_idx")]},
        ),
        migrations.CreateModel("Slip", [ID, ("note", models.CharField(max_length=10, default=""))]),
    ]
