from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("products", "0004_labels")]

    operations = [
        migrations.RenameModel(old_name="Label", new_name="Tag"),
        migrations.RenameField(model_name="product", old_name="labels", new_name="tags"),
    ]
