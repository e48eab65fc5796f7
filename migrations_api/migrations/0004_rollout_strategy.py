import django.db.models.deletion
from django.db import migrations, models


def keep_on_error(apps, schema_editor):
    rollouts = apps.get_model("migrations_api", "Rollout").objects.using(schema_editor.connection.alias)
    rollouts.filter(on_error="fail").update(strategy={"on_error": "fail"})
    rollouts.filter(requested_via="command").update(foreground=True)


def restore_on_error(apps, schema_editor):
    rollouts = apps.get_model("migrations_api", "Rollout").objects.using(schema_editor.connection.alias)
    rollouts.filter(strategy__on_error="fail").update(on_error="fail")


class Migration(migrations.Migration):
    dependencies = [
        ("migrations_api", "0003_audit_append_only"),
        ("tenants", "0002_hold_and_suspend"),
    ]

    operations = [
        migrations.RemoveIndex(
            model_name="migrationrun",
            name="run_by_rollout_state",
        ),
        migrations.AddField(
            model_name="migrationrun",
            name="interrupt_requested",
            field=models.BooleanField(default=False),
        ),
        migrations.AddField(
            model_name="rollout",
            name="awaits_promotion",
            field=models.BooleanField(default=False),
        ),
        migrations.AddField(
            model_name="rollout",
            name="foreground",
            field=models.BooleanField(default=False),
        ),
        migrations.AddField(
            model_name="rollout",
            name="last_wave",
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="rollout",
            name="next_wave_at",
            field=models.DateTimeField(help_text="When the next wave opens by itself.", null=True),
        ),
        migrations.AddField(
            model_name="rollout",
            name="open_wave",
            field=models.PositiveIntegerField(default=0, help_text="Runs of later waves are not started."),
        ),
        migrations.AddField(
            model_name="rollout",
            name="pardoned",
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="rollout",
            name="progress_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="rollout",
            name="promoted_fully",
            field=models.BooleanField(default=False, help_text="Waves open without waiting."),
        ),
        migrations.AddField(
            model_name="rollout",
            name="retry_of",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="retries",
                to="migrations_api.rollout",
            ),
        ),
        migrations.AddField(
            model_name="rollout",
            name="selector",
            field=models.JSONField(blank=True, default=dict),
        ),
        migrations.AddField(
            model_name="rollout",
            name="stop_code",
            field=models.CharField(blank=True, help_text="Why it was paused or stopped.", max_length=50),
        ),
        migrations.AddField(
            model_name="rollout",
            name="stop_reason",
            field=models.CharField(blank=True, max_length=500),
        ),
        migrations.AddField(
            model_name="rollout",
            name="strategy",
            field=models.JSONField(blank=True, default=dict),
        ),
        migrations.RunPython(keep_on_error, restore_on_error),
        migrations.RemoveField(
            model_name="rollout",
            name="on_error",
        ),
        migrations.AddField(
            model_name="rollout",
            name="total",
            field=models.PositiveIntegerField(default=0, help_text="Tenants of the rollout, those left out included."),
        ),
        migrations.AddIndex(
            model_name="migrationrun",
            index=models.Index(fields=["rollout", "state", "wave", "tenant"], name="run_by_rollout_wave"),
        ),
    ]
