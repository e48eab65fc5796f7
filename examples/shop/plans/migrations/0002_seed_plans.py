from decimal import Decimal

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

PRICES = {"free": Decimal("0.00"), "team": Decimal("29.00"), "enterprise": Decimal("199.00")}
FLAGS = {"discounts": ["team", "enterprise"], "audit-log": ["enterprise"]}


def add_plans(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    alias = schema_editor.connection.alias
    plans = apps.get_model("plans", "Plan").objects.using(alias)
    flags = apps.get_model("plans", "FeatureFlag").objects.using(alias)
    for name, price in PRICES.items():
        plans.create(name=name, monthly_price=price)
    for name, plan_names in FLAGS.items():
        flags.create(name=name).plans.set(plans.filter(name__in=plan_names).order_by("pk"))


def remove_plans(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    alias = schema_editor.connection.alias
    apps.get_model("plans", "FeatureFlag").objects.using(alias).filter(name__in=FLAGS).delete()
    apps.get_model("plans", "Plan").objects.using(alias).filter(name__in=PRICES).delete()


class Migration(migrations.Migration):
    dependencies = [("plans", "0001_initial")]

    operations = [migrations.RunPython(add_plans, remove_plans)]
