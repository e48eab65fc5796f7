from django.db import migrations, models

from tests.broken.orders_faults import place


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry"), ("users", "0005_address")]

    operations = [
        migrations.CreateModel("Parcel", [("id", models.BigAutoField(primary_key=True))]),
        place("atomic"),
        # Its constraint is deferred SQL, which Django carries out at the end.
        migrations.AddField("order", "parcel", models.ForeignKey("orders.Parcel", models.CASCADE, null=True)),
    ]
