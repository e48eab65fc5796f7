import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("migrations_api", "0004_coordinator"),
        ("tenants", "0001_initial"),
    ]

    operations = [
        migrations.AlterField(
            model_name="migrationrun",
            name="rollout",
            field=models.ForeignKey(
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="runs",
                to="migrations_api.rollout",
            ),
        ),
        migrations.AlterField(
            model_name="migrationrun",
            name="tenant",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                on_delete=django.db.models.deletion.DO_NOTHING,
                related_name="runs",
                to="tenants.tenant",
            ),
        ),
        migrations.AlterField(
            model_name="runstep",
            name="run",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="steps",
                to="migrations_api.migrationrun",
            ),
        ),
        migrations.AddIndex(
            model_name="migrationrun",
            index=models.Index(fields=["state", "-id"], name="run_by_state"),
        ),
        migrations.AddIndex(
            model_name="migrationrun",
            index=models.Index(fields=["rollout", "id"], name="run_by_rollout"),
        ),
    ]
