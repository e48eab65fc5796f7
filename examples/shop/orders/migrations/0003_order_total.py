from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import F, OuterRef, Subquery, Sum
from django.db.models.functions import Coalesce


def fill_totals(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    alias = schema_editor.connection.alias
    lines = apps.get_model("orders", "OrderLine").objects.using(alias).filter(order=OuterRef("pk"))
    total = lines.values("order").annotate(total=Sum(F("quantity") * F("unit_price"))).values("total")
    apps.get_model("orders", "Order").objects.using(alias).update(total=Coalesce(Subquery(total), F("total")))


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry")]

    operations = [
        migrations.AddField(
            model_name="order",
            name="total",
            field=models.DecimalField(decimal_places=2, default=0, max_digits=12),
        ),
        # The column itself goes when this is undone.
        migrations.RunPython(fill_totals, migrations.RunPython.noop),
    ]
