from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_step")]

    operations = [migrations.CreateModel("Label", [("id", models.BigAutoField(primary_key=True))])]
