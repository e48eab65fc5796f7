from migrations_api.management.undoing import WholeTenantsCommand
from migrations_api.models import Action


class Command(WholeTenantsCommand):
    help = "Take every app of all tenants, or of those selected, to zero: their tables are dropped with their rows."
    action = Action.RESET
    does = "takes every app to zero"
