from django.db import migrations

FORWARDS = """
CREATE FUNCTION migrations_api_audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit entries are only ever added';
END $$;
CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE ON migrations_api_auditentry
    FOR EACH ROW EXECUTE FUNCTION migrations_api_audit_is_append_only();
"""
BACKWARDS = """
DROP TRIGGER audit_is_append_only ON migrations_api_auditentry;
DROP FUNCTION migrations_api_audit_is_append_only();
"""


class Migration(migrations.Migration):
    dependencies = [("migrations_api", "0002_roles")]

    operations = [migrations.RunSQL(FORWARDS, BACKWARDS)]
