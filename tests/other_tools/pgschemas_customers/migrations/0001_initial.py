from django.db import migrations, models
from django_pgschemas.utils import check_schema_name


class Migration(migrations.Migration):
    initial = True

    operations = [
        migrations.CreateModel(
            "Client",
            [
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                ("schema_name", models.CharField(max_length=63, unique=True, validators=[check_schema_name])),
                ("name", models.CharField(max_length=100)),
            ],
        ),
    ]
