from django.db import migrations

APPEND_LOCK_TIMEOUT = """
INSERT INTO ledger (migration, created_at) VALUES ('lock_timeout ' || current_setting('lock_timeout'), now())
"""


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry")]

    operations = [
        migrations.RunSQL("RESET ALL", migrations.RunSQL.noop),
        migrations.RunSQL(APPEND_LOCK_TIMEOUT, migrations.RunSQL.noop),
    ]
