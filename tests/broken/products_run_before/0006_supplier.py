from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("products", "0005_label_to_tag")]

    run_before = [("orders", "0001_initial")]

    operations = [migrations.CreateModel("Supplier", [("id", models.BigAutoField(primary_key=True))])]
