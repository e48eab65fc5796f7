"""Does what the tenant's table `told` says: SQL, carried out the one way or the other."""

from typing import Any

from django.db import migrations, models


def obey(apps: Any, schema_editor: Any) -> None:
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT statement FROM told")
        for (statement,) in cursor.fetchall():
            cursor.execute(statement)


class Migration(migrations.Migration):
    dependencies = [("orders", "0001_initial")]

    operations = [
        migrations.CreateModel("Reach", [("id", models.BigAutoField(primary_key=True))]),
        migrations.RunPython(obey, migrations.RunPython.noop),
    ]
