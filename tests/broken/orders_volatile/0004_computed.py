import uuid

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orders", "0003_plain")]

    operations = [migrations.AddField("order", "key", models.UUIDField(default=uuid.uuid4))]
