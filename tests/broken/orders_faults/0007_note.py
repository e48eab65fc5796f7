from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orders", "0006_unique_reference")]

    operations = [
        migrations.AddField("order", "note", models.TextField(default="")),
        migrations.AddIndex("order", models.Index(fields=["note"], name="orders_note_idx")),
    ]
