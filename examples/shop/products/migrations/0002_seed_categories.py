from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

NAMES = ["Books", "Clothing", "Food", "Household"]


def add_categories(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    categories = apps.get_model("products", "Category").objects.using(schema_editor.connection.alias)
    for name in NAMES:
        categories.get_or_create(name=name)


def remove_unused_categories(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    categories = apps.get_model("products", "Category").objects.using(schema_editor.connection.alias)
    categories.filter(name__in=NAMES, products__isnull=True).delete()


class Migration(migrations.Migration):
    dependencies = [("products", "0001_initial")]

    operations = [migrations.RunPython(add_categories, remove_unused_categories)]
