from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orders", "0003_gate")]

    operations = [migrations.AddField("order", "note", models.TextField(default=""))]
