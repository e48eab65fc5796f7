from django.db import migrations, models

from tests.broken.orders_slow import GATE

# Without a lock of its own and in short naps, so that lock_timeout does not end it.
WAIT = f"DO $$ BEGIN WHILE NOT pg_try_advisory_xact_lock_shared({GATE}) LOOP PERFORM pg_sleep(0.02); END LOOP; END $$"


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry")]

    operations = [
        migrations.CreateModel("Parcel", [("id", models.BigAutoField(primary_key=True))]),
        migrations.RunSQL(WAIT, migrations.RunSQL.noop),
    ]
