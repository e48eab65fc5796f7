from importlib import import_module

import django.db.models.deletion
from django.db import migrations, models

seed = import_module("examples.shop.products.migrations.0002_seed_categories")


class Migration(migrations.Migration):
    initial = True

    replaces = [
        ("products", "0001_initial"),
        ("products", "0002_seed_categories"),
        ("products", "0003_price_check"),
        ("products", "0004_labels"),
        ("products", "0005_label_to_tag"),
    ]

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Category",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100, unique=True)),
            ],
            options={"verbose_name_plural": "categories"},
        ),
        migrations.CreateModel(
            name="Tag",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=50, unique=True)),
            ],
        ),
        migrations.CreateModel(
            name="Product",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("sku", models.CharField(max_length=40, unique=True)),
                ("name", models.CharField(max_length=200)),
                ("price", models.DecimalField(decimal_places=2, max_digits=10)),
                (
                    "category",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="products", to="products.category"
                    ),
                ),
                ("tags", models.ManyToManyField(blank=True, related_name="products", to="products.tag")),
            ],
            options={
                "indexes": [models.Index(fields=["category", "name"], name="products_category_name_idx")],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(price__gte=0), name="products_product_price_not_negative"
                    ),
                ],
            },
        ),
        # Deleting rows here would leave pending trigger events, and PostgreSQL would refuse to drop the table.
        migrations.RunPython(seed.add_categories, migrations.RunPython.noop),
    ]
