from django.db import models


class Category(models.Model):
    name = models.CharField(max_length=100, unique=True)

    class Meta:
        verbose_name_plural = "categories"

    def __str__(self) -> str:
        return self.name


class Tag(models.Model):
    name = models.CharField(max_length=50, unique=True)

    def __str__(self) -> str:
        return self.name


class Product(models.Model):
    """Something that a shop sells; `price` is in the shop's own currency."""

    sku = models.CharField(max_length=40, unique=True)
    name = models.CharField(max_length=200)
    category = models.ForeignKey(Category, on_delete=models.PROTECT, related_name="products")
    price = models.DecimalField(max_digits=10, decimal_places=2)
    tags = models.ManyToManyField(Tag, blank=True, related_name="products")

    class Meta:
        indexes = [models.Index(fields=["category", "name"], name="products_category_name_idx")]
        constraints = [
            models.CheckConstraint(condition=models.Q(price__gte=0), name="products_product_price_not_negative")
        ]

    def __str__(self) -> str:
        return self.name
