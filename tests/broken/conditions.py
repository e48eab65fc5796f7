from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def is_globex(schema_editor: BaseDatabaseSchemaEditor) -> bool:
    """Whether the session stands in a schema or database whose name contains `globex`."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT concat_ws(' ', current_schema(), current_database())")
        return "globex" in cursor.fetchone()[0]
