from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orders", "0003_import_users")]

    operations = [migrations.AddField("order", "note", models.TextField(default=""))]
