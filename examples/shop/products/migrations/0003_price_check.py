from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("products", "0002_seed_categories")]

    operations = [
        migrations.AddConstraint(
            model_name="product",
            constraint=models.CheckConstraint(
                condition=models.Q(price__gte=0), name="products_product_price_not_negative"
            ),
        ),
        migrations.AddIndex(
            model_name="product",
            index=models.Index(fields=["category", "name"], name="products_category_name_idx"),
        ),
    ]
