from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("migrations_api", "0003_audit_append_only"),
    ]

    operations = [
        migrations.CreateModel(
            name="Coordinator",
            fields=[
                (
                    "name",
                    models.CharField(help_text="Host and process.", max_length=255, primary_key=True, serialize=False),
                ),
                ("leading", models.BooleanField(default=False)),
                ("started_at", models.DateTimeField()),
                ("seen_at", models.DateTimeField(db_index=True)),
            ],
        ),
    ]
