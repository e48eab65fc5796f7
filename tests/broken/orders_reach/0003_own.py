from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_reach")]

    operations = [
        migrations.DeleteModel("Slip"),
        migrations.AlterField("order", "status", models.TextField()),
        migrations.AddIndex("order", models.Index(fields=["status"], name="orders_status_idx")),
        migrations.RunSQL("CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'", "DROP FUNCTION one()"),
    ]
