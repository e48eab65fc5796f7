from django_pgschemas.models import TenantModel


class Client(TenantModel):
    auto_create_schema = False
