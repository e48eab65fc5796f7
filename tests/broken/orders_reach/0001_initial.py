from django.db import migrations, models

ID = ("id", models.BigAutoField(primary_key=True))


class Migration(migrations.Migration):
    initial = True

    operations = [
        migrations.CreateModel("Order", [ID, ("status", models.CharField(max_length=10))]),
        migrations.CreateModel("Slip", [ID, ("order", models.ForeignKey("orders.Order", on_delete=models.CASCADE))]),
    ]
