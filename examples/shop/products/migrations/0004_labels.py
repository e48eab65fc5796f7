from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("products", "0003_price_check")]

    operations = [
        migrations.CreateModel(
            name="Label",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=50, unique=True)),
            ],
        ),
        migrations.AddField(
            model_name="product",
            name="labels",
            field=models.ManyToManyField(blank=True, related_name="products", to="products.label"),
        ),
    ]
