from django.db import migrations, models

from tests.broken.orders_faults import place


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("orders", "0003_parcel")]

    operations = [
        place("torn 0"),
        migrations.CreateModel("Archive", [("id", models.BigAutoField(primary_key=True))]),
        place("torn 1"),
        migrations.AddField("order", "reference", models.TextField(default="")),
        place("torn 2"),
        migrations.AddField("archive", "weight", models.IntegerField(default=0)),
        place("torn 3"),
    ]
