from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("orders", "0003_own")]

    operations = [migrations.DeleteModel("Order"), migrations.DeleteModel("Reach")]
