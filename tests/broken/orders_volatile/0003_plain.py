from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orders", "0002_seed")]

    operations = [
        migrations.AddField("order", "weight", models.IntegerField(default=0)),
        migrations.AddField("order", "extra", models.JSONField(default=dict)),
        migrations.AddField("order", "height", models.IntegerField(db_default=5)),
    ]
