from migrations_api.management.undoing import WholeTenantsCommand
from migrations_api.models import Action


class Command(WholeTenantsCommand):
    help = "Take every app of all tenants, or of those selected, to zero, and migrate them again from there."
    action = Action.REFRESH
    does = "takes every app to zero and forwards again"
