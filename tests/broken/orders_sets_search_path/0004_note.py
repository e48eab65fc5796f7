from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orders", "0003_search_path")]

    operations = [migrations.AddField("order", "note", models.TextField(default=""))]
