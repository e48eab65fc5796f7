from django.db import migrations

ROLES = ["viewer", "operator", "admin"]


def create_groups(apps, schema_editor):
    groups = apps.get_model("auth", "Group").objects.using(schema_editor.connection.alias)
    for role in ROLES:
        groups.get_or_create(name=role)


class Migration(migrations.Migration):
    dependencies = [("migrations_api", "0001_initial"), ("auth", "0012_alter_user_first_name_max_length")]

    # The groups stay: a team may have had one of the same name before.
    operations = [migrations.RunPython(create_groups, migrations.RunPython.noop)]
