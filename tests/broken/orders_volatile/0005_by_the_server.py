from django.db import migrations, models
from django.db.models.functions import Now


class Migration(migrations.Migration):
    dependencies = [("orders", "0004_computed")]

    operations = [migrations.AddField("order", "since", models.DateTimeField(db_default=Now()))]
