from migrations_api.management.whole_tenant import WholeTenantCommand
from migrations_api.models import Action


class Command(WholeTenantCommand):
    help = "Take every app of one tenant to zero, dropping its rows, and migrate it again from there."
    action = Action.REFRESH
