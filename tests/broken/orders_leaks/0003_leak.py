import re
from urllib.parse import quote

from django.apps.registry import Apps
from django.db import DatabaseError, migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

ROW = "ada.lovelace@rows.example"


def leak(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Fail in the way that the tenant is called by, with a message that holds what it must not."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT current_schema()")
        how = cursor.fetchone()[0].partition("_")[2]
        if how in FAILURES:
            FAILURES[how](apps, schema_editor)


def tell_url(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    password = schema_editor.connection.settings_dict["PASSWORD"]
    pieces = password.split("@")
    encoded = quote(password, safe="")
    lower = re.sub("%..", lambda escape: escape[0].lower(), encoded)
    raise RuntimeError(
        f"cannot reach postgresql://me:{encoded}@db/shop nor postgresql://me:{password}@db/shop; {lower}, {encoded}, "
        f"{quote(password)}, {password!r}; no host '{pieces[-1]}'\nin {pieces[0]}"
    )


def violate_unique(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    users = apps.get_model("users", "User").objects.using(schema_editor.connection.alias)
    users.create(email=ROW)
    users.create(email=ROW)


def violate_check(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    schema_editor.execute("CREATE TABLE strict (owner text CHECK (owner = ''))")
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("INSERT INTO strict VALUES (%s)", [ROW])


def cast(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT %s::integer", [ROW])


def tell_violation(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    text = ""
    try:
        violate_check(apps, schema_editor)
    except DatabaseError as error:
        text = str(error)
    raise RuntimeError(f"the import failed: {text}")


FAILURES = {
    "url": tell_url,
    "vault": tell_url,
    "unique": violate_unique,
    "check": violate_check,
    "cast": cast,
    "violation": tell_violation,
}


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry"), ("users", "0005_address")]

    operations = [migrations.RunPython(leak, migrations.RunPython.noop)]
