from django.db import migrations
from django.db.models import Q

from migrations_api.schema import Schema


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("orders", "0002_ledger_entry"), ("users", "0001_initial")]

    operations = [
        *Schema.create(
            "Invoice",
            lambda table: [
                table.big_increments("id"),
                table.string("number", 32).unique(),
                table.foreign("order_id").references("orders.Order").on_delete("cascade"),
                table.timestamps(),
            ],
        ),
        *Schema.table(
            "Order",
            lambda table: [
                table.decimal("discount", 12, 2).nullable(),
                table.string("reference", 32).nullable().unique(),
                table.foreign("payer_id")
                .references("users.User")
                .on_delete("protect")
                .nullable()
                .options(related_name="+"),
                table.index(["status", "reference"], concurrently=True),
                table.unique(["payer", "reference"]),
                table.check(Q(discount__gte=0), name="orders_discount_not_negative"),
                table.string("status", 12).default("open").index().change(),
            ],
        ),
    ]
