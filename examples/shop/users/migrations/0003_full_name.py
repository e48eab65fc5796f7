from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import Value
from django.db.models.functions import Concat, Trim


def join_names(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    users = apps.get_model("users", "User").objects.using(schema_editor.connection.alias)
    users.update(full_name=Trim(Concat("first_name", Value(" ", output_field=models.TextField()), "last_name")))


def split_names(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    users = apps.get_model("users", "User").objects.using(schema_editor.connection.alias)
    for pk, full_name in users.values_list("pk", "full_name").iterator():
        first_name, _, last_name = full_name.partition(" ")
        users.filter(pk=pk).update(first_name=first_name, last_name=last_name)


class Migration(migrations.Migration):
    dependencies = [("users", "0002_email_unique")]

    operations = [
        migrations.AddField(
            model_name="user",
            name="full_name",
            field=models.TextField(blank=True, default=""),
        ),
        migrations.RunPython(join_names, split_names),
    ]
