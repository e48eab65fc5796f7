from django.db import migrations

CREATE = "CREATE UNIQUE INDEX CONCURRENTLY orders_reference_unique ON orders_order (reference, status)"


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("orders", "0005_status_index")]

    operations = [migrations.RunSQL(CREATE, "DROP INDEX CONCURRENTLY orders_reference_unique")]
