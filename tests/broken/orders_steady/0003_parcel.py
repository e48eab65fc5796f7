from django.db import migrations, models

from tests.broken.orders_steady import NAP


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry")]

    operations = [
        migrations.CreateModel("Parcel", [("id", models.BigAutoField(primary_key=True))]),
        migrations.RunSQL(NAP, migrations.RunSQL.noop),
        migrations.AddField("order", "parcel", models.ForeignKey("orders.Parcel", models.CASCADE, null=True)),
    ]
