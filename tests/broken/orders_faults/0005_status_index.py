from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("orders", "0004_torn")]

    operations = [
        AddIndexConcurrently("order", models.Index(fields=["status", "placed_at"], name="orders_status_idx")),
    ]
