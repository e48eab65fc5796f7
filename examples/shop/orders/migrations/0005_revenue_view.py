from django.db import migrations

CREATE_VIEW = """
CREATE VIEW orders_revenue AS
SELECT user_id, count(*) AS orders, sum(total) AS revenue
FROM orders_order
WHERE status <> 'open'
GROUP BY user_id
"""


class Migration(migrations.Migration):
    dependencies = [("orders", "0004_status_index")]

    operations = [migrations.RunSQL(CREATE_VIEW, "DROP VIEW orders_revenue")]
