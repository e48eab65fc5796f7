from django.db import models
from django.utils import timezone


class Order(models.Model):
    class Status(models.TextChoices):
        OPEN = "open"
        PAID = "paid"
        SHIPPED = "shipped"

    user = models.ForeignKey("users.User", on_delete=models.PROTECT, related_name="orders")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.OPEN)
    placed_at = models.DateTimeField(default=timezone.now)
    total = models.DecimalField(max_digits=12, decimal_places=2, default=0)

    class Meta:
        indexes = [models.Index(fields=["status", "placed_at"], name="orders_status_placed_idx")]

    def __str__(self) -> str:
        return f"order {self.pk}"


class OrderLine(models.Model):
    """One product of an order; `unit_price` is the price on the day it was ordered."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    product = models.ForeignKey("products.Product", on_delete=models.PROTECT, related_name="order_lines")
    quantity = models.PositiveIntegerField(default=1)
    unit_price = models.DecimalField(max_digits=10, decimal_places=2)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["order", "product"], name="orders_orderline_product_unique")]

    def __str__(self) -> str:
        return f"{self.quantity} x {self.product_id}"


class LedgerEntry(models.Model):
    """One row for each time that a migration's data step has run: two rows show that it ran twice."""

    migration = models.TextField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        db_table = "ledger"

    def __str__(self) -> str:
        return self.migration
