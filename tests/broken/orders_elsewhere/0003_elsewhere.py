from django.apps.registry import Apps
from django.conf import settings
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def elsewhere(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Begin at home, and go where the test says."""
    schema_editor.execute("CREATE TABLE at_home ()")
    schema_editor.execute(settings.ELSEWHERE)


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry")]

    operations = [migrations.RunPython(elsewhere)]
