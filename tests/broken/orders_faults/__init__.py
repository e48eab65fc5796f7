"""Steps of every kind, and between their operations places at which a test can have something happen."""

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from tests.broken.happenings import HAPPENINGS


def place(name: str) -> migrations.RunPython:
    def happen(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
        if happening := HAPPENINGS.get(name):
            happening(apps, schema_editor)

    return migrations.RunPython(happen, migrations.RunPython.noop)
