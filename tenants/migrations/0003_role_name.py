import django.db.models.functions.text
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0002_hold_and_suspend"),
    ]

    operations = [
        migrations.AddField(
            model_name="tenant",
            name="role_name",
            field=models.CharField(
                blank=True, help_text="The PostgreSQL role that its sessions take on, if any.", max_length=63
            ),
        ),
        migrations.AddConstraint(
            model_name="tenant",
            constraint=models.UniqueConstraint(
                models.F("database"),
                django.db.models.functions.text.Lower("role_name"),
                condition=models.Q(("role_name__gt", "")),
                name="tenant_role_unique",
                violation_error_message="Another tenant has that role.",
            ),
        ),
    ]
