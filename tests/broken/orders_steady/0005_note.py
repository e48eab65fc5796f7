from django.db import migrations, models

from tests.broken.orders_steady import NAP


class Migration(migrations.Migration):
    dependencies = [("orders", "0004_channel")]

    operations = [
        migrations.AddField("order", "note", models.TextField(default="")),
        migrations.RunSQL(NAP, migrations.RunSQL.noop),
        migrations.AddIndex("order", models.Index(fields=["note"], name="orders_note_idx")),
    ]
